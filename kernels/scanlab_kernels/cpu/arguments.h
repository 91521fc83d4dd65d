// The one place where tensors are checked before a kernel sees their memory: device, layout, dtype, shape, overlap.
//
// The Python functions explain what is wrong with what users pass; here only what would touch foreign memory, or leave
// a state half written, is refused.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <vector>

#include "cpu/types.h"

namespace scanlab {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline Tensor value_of(const OptionalTensor& tensor) { return tensor.has_value() ? *tensor : Tensor(); }

// False for tensors of a trace too, which say that they are on the CPU while their storage is not.
inline bool has_data(const Tensor& tensor) {
    return tensor.has_storage() && tensor.storage().device_type() == at::kCPU;
}

inline Type type_of(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case at::kFloat: return Type::float32;
        case at::kDouble: return Type::float64;
        case at::kBFloat16: return Type::bfloat16;
        case at::kHalf: return Type::float16;
        default: TORCH_CHECK_TYPE(false, tensor.scalar_type(), ": must be float32, float64, bfloat16 or float16");
    }
}

// Raises unless the tensor lies in the memory of this process, element by element.
inline void expect_memory(const char* name, const Tensor& tensor) {
    TORCH_CHECK_VALUE(tensor.defined() && tensor.layout() == at::kStrided && has_data(tensor), name, " is ",
                      tensor.defined() ? c10::str(tensor.layout(), " on ", tensor.device()) : "undefined",
                      ": must be a strided tensor on the CPU, with data");
}
inline void expect_shape(const char* name, const Tensor& tensor, at::IntArrayRef shape) {
    expect_memory(name, tensor);
    TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " ", tensor.sizes(), ": must be ", shape);
}
// Of any floating type.
inline void expect(const char* name, const Tensor& tensor, at::IntArrayRef shape) {
    expect_shape(name, tensor, shape);
    type_of(tensor);
}
inline void expect(const char* name, const Tensor& tensor, at::IntArrayRef shape, at::ScalarType type) {
    expect_shape(name, tensor, shape);
    TORCH_CHECK_TYPE(tensor.scalar_type() == type, name, " is ", tensor.scalar_type(), ": must be ", type);
}

// A contiguous copy in `type`, or the tensor itself where it is one.
inline Tensor dense(const Tensor& tensor, at::ScalarType type) { return tensor.to(type).contiguous(); }
inline Tensor dense(const char* name, const OptionalTensor& tensor, at::IntArrayRef shape, at::ScalarType type) {
    if (!tensor) return {};
    expect(name, *tensor, shape);
    return dense(*tensor, type);
}

inline const void* pointer(const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

inline const int32_t* indices(const char* name, const Tensor& tensor, int64_t count) {
    if (!tensor.defined()) return nullptr;
    expect(name, tensor, {count}, at::kInt);
    TORCH_CHECK_VALUE(tensor.is_contiguous(), name, " has stride ", tensor.strides(), ": must be contiguous");
    return tensor.const_data_ptr<int32_t>();
}
inline void expect_rows(const char* name, const int32_t* rows, int64_t count, int64_t limit) {
    for (int64_t i = 0; rows && i < count; i++)
        TORCH_CHECK_INDEX(rows[i] < limit, name, "[", i, "]=", rows[i], ": the state has ", limit, " rows");
}

// The kernel of an op for tensors without data, which only describes its results. Raises where one of the tensors has
// data after all: what a mixed call returned would never be written.
template <auto describe>
struct Meta;
template <class Result, class... Arguments, Result (*describe)(Arguments...)>
struct Meta<describe> {
    static Result run(Arguments... arguments) {
        (refuse_data(arguments), ...);
        return describe(arguments...);
    }

private:
    static void refuse_data(const Tensor& tensor) {
        TORCH_CHECK_VALUE(!tensor.defined() || !has_data(tensor),
                          "tensors on the CPU and on meta in one call: move all to one device");
    }
    static void refuse_data(const OptionalTensor& tensor) { refuse_data(value_of(tensor)); }
    template <class Other>
    static void refuse_data(const Other&) {}
};

// The addresses between which a tensor lies.
struct Span {
    const char *begin, *end;

    explicit Span(const Tensor& tensor) {
        int64_t last = 0;
        for (int64_t axis = 0; axis < tensor.dim(); axis++) last += (tensor.size(axis) - 1) * tensor.stride(axis);
        begin = static_cast<const char*>(tensor.const_data_ptr());
        end = tensor.numel() ? begin + (last + 1) * tensor.element_size() : begin;
    }
    bool meets(const Span& other) const { return begin < other.end && other.begin < end; }
};

// Raises unless each element has an address of its own: each axis must step over all that the narrower ones reach.
inline void expect_no_internal_overlap(const char* name, const Tensor& tensor) {
    std::vector<int64_t> axes(tensor.dim());
    std::iota(axes.begin(), axes.end(), 0);
    std::sort(axes.begin(), axes.end(), [&](int64_t a, int64_t b) { return tensor.stride(a) < tensor.stride(b); });
    int64_t reach = 0;
    for (const int64_t axis : axes) {
        if (tensor.size(axis) <= 1) continue;
        TORCH_CHECK_VALUE(tensor.numel() == 0 || tensor.stride(axis) > reach, name, " has sizes ", tensor.sizes(),
                          " and strides ", tensor.strides(), ": elements of it overlap; pass a contiguous tensor");
        reach += (tensor.size(axis) - 1) * tensor.stride(axis);
    }
}

// A tensor that is read while `state` is written: a copy of it where their memory may overlap.
inline Tensor apart_from(const Tensor& state, const Tensor& tensor) {
    return tensor.defined() && Span(tensor).meets(Span(state)) ? tensor.clone() : tensor;
}
inline OptionalTensor apart_from(const Tensor& state, const OptionalTensor& tensor) {
    return tensor ? OptionalTensor(apart_from(state, *tensor)) : std::nullopt;
}

}  // namespace scanlab
