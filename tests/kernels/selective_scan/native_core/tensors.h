// Strided tensors of any storage type, read and written one number at a time.
#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "selective_scan/native/scan.h"

namespace scanlab::test {

using Complex = std::complex<double>;
using Random = std::mt19937;

inline int64_t item_bytes(Type type) { return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2; }
inline Type arithmetic(Type type) { return type == Type::float64 ? Type::float64 : Type::float32; }

// The number that a pattern of bits stands for, computed from its fields.
inline double from_fields(uint32_t bits, int exponent_bits, int mantissa_bits) {
    const int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
    const int exponent = bits >> mantissa_bits & top;
    const double mantissa = std::ldexp(double(bits & ((1u << mantissa_bits) - 1)), -mantissa_bits);
    const double sign = bits >> (exponent_bits + mantissa_bits) ? -1 : 1;
    if (exponent == top) return mantissa ? NAN : sign * INFINITY;
    return sign * (exponent ? std::ldexp(1 + mantissa, exponent - bias) : std::ldexp(mantissa, 1 - bias));
}
inline double from_float16(uint16_t bits) { return from_fields(bits, 5, 10); }
inline double from_bfloat16(uint16_t bits) { return from_fields(bits, 8, 7); }

// A tensor whose memory ends with its last element, so that a checker of memory sees every step beyond it.
class Tensor {
public:
    Tensor() = default;

    // `order` lists the axes from the one of the largest stride to that of the smallest; `gap` widens every stride.
    Tensor(Type type, std::vector<int64_t> shape, const std::vector<int>& order, int64_t gap = 1)
        : type(type), shape(std::move(shape)), strides(this->shape.size()) {
        int64_t step = gap;
        for (size_t i = order.size(); i-- > 0;) strides[order[i]] = step, step *= this->shape[order[i]];
        int64_t last = 0;
        for (size_t axis = 0; axis < strides.size(); axis++) last += (this->shape[axis] - 1) * strides[axis];
        bytes = (last + 1) * item_bytes(type);
        memory.reset(new char[bytes]);
        fill_bytes(0xff);  // what no one writes is not a number
    }

    Type type = Type::float32;
    std::vector<int64_t> shape, strides;

    bool exists() const { return memory != nullptr; }
    void* data() const { return memory.get(); }
    void fill_bytes(int byte) { std::memset(memory.get(), byte, bytes); }
    bool same_bits(const Tensor& other) const { return !std::memcmp(memory.get(), other.memory.get(), bytes); }

    template <class... Index>
    double operator()(Index... index) const {
        const char* from = at({int64_t(index)...});
        if (type == Type::float64) return number<double>(from);
        if (type == Type::float32) return number<float>(from);
        return type == Type::float16 ? from_float16(number<uint16_t>(from)) : from_bfloat16(number<uint16_t>(from));
    }

    // Fills the tensor with numbers that its type holds exactly. Halves are drawn as bits of moderate size.
    template <class Draw>
    void draw(Random& random, const Draw& value) {
        std::vector<int64_t> index(shape.size(), 0);
        for (;;) {
            set(at(index), value(random));
            size_t axis = shape.size();
            while (axis && ++index[axis - 1] == shape[axis - 1]) index[--axis] = 0;
            if (!axis) return;
        }
    }

private:
    std::unique_ptr<char[]> memory;
    int64_t bytes = 0;

    char* at(const std::vector<int64_t>& index) const {
        int64_t offset = 0;
        for (size_t axis = 0; axis < strides.size(); axis++) offset += index[axis] * strides[axis];
        return memory.get() + offset * item_bytes(type);
    }
    template <class T>
    static T number(const char* from) {
        T value;
        std::memcpy(&value, from, sizeof(T));
        return value;
    }
    void set(char* to, double value) const {
        if (type == Type::float64) {
            std::memcpy(to, &value, 8);
            return;
        }
        const float narrow = float(value);
        if (type == Type::float32) {
            std::memcpy(to, &narrow, 4);
            return;
        }
        // Cutting off the low bits of the mantissa leaves a number that the half holds.
        uint32_t bits;
        std::memcpy(&bits, &narrow, 4);
        const uint32_t exponent = bits >> 23 & 0xff, sign = bits >> 16 & 0x8000;
        const bool in_range = exponent > 112 && exponent < 143;
        const uint16_t half = type == Type::bfloat16 ? bits >> 16
                              : in_range             ? sign | (exponent - 112) << 10 | (bits >> 13 & 0x3ff)
                                                     : sign;
        std::memcpy(to, &half, 2);
    }
};

}  // namespace scanlab::test
