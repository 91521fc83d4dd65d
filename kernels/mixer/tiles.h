// Runs and tiles: strided elements of any storage type as dense numbers of the arithmetic type, and back.
#pragma once

#include "mixer.h"
#include "native_simd.h"

namespace scanlab::SCANLAB_ISA {

using mixer::Matrix;

template <class S>
struct Storage {
    typedef S type;
};

// Calls act with the Storage that `type` names.
template <class Act>
SCANLAB_INLINE void with_storage(Type type, const Act& act) {
    switch (type) {
        case Type::float32: return act(Storage<float>());
        case Type::float64: return act(Storage<double>());
        case Type::bfloat16: return act(Storage<bfloat16>());
        case Type::float16: return act(Storage<float16>());
    }
}

// Whether whole vectors of S can be loaded as vectors of T.
template <class T, class S>
inline constexpr bool vectors = sizeof(S) == sizeof(T) || (sizeof(T) == 4 && sizeof(S) == 2);

template <class T, class S>
SCANLAB_INLINE T number(const S* from) {
    if constexpr (sizeof(S) == 2) {
        return load_some<float>(from, 1)[0];
    } else {
        return T(*from);
    }
}
template <class T, class S>
SCANLAB_INLINE void set_number(S* to, T value) {
    if constexpr (sizeof(S) == 2) {
        store_some<float>(to, broadcast(float(value)), 1);
    } else {
        *to = S(value);
    }
}

SCANLAB_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SCANLAB_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
template <class T>
SCANLAB_INLINE int64_t whole_vectors(int64_t count) {
    return (count + lanes<T> - 1) / lanes<T> * lanes<T>;
}

template <class T>
SCANLAB_INLINE void clear(T* to, int64_t count) {
    memset(to, 0, count * sizeof(T));
}

// `count` elements, `stride` apart in the tensor, then zeros to the end of the vector.
template <class T, class S>
SCANLAB_INLINE void read_run(T* to, const S* from, int64_t stride, int64_t count) {
    if constexpr (vectors<T, S>) {
        if (stride == 1) {
            for (int64_t i = 0; i < count; i += lanes<T>)
                store<T>(to + i, load_some<T>(from + i, int(smaller(count - i, lanes<T>))));
            return;
        }
    }
    for (int64_t i = 0; i < count; i++) to[i] = number<T>(from + i * stride);
    for (int64_t i = count; i < whole_vectors<T>(count); i++) to[i] = 0;
}
template <class T, class S>
SCANLAB_INLINE void write_run(S* to, const T* from, int64_t stride, int64_t count) {
    if constexpr (vectors<T, S>) {
        if (stride == 1) {
            for (int64_t i = 0; i < count; i += lanes<T>)
                store_some<T>(to + i, load<T>(from + i), int(smaller(count - i, lanes<T>)));
            return;
        }
    }
    for (int64_t i = 0; i < count; i++) set_number<T>(to + i * stride, from[i]);
}

// A tile holds `steps` time steps of up to lanes<T> channels, a vector for each step, or of one channel,
// adjacent: `pitch` is the distance between steps, lanes<T> or 1. Here (row, column) is (channel, time).
template <class T>
void read_tile(T* to, int pitch, const Matrix& from, int64_t lead, int64_t channel, int channels, int64_t step, int64_t steps) {
    with_storage(from.type, [&](auto storage) {
        using S = typename decltype(storage)::type;
        const S* first = static_cast<const S*>(from.data) + lead * from.lead + channel * from.row + step * from.column;
        if (pitch == 1) return read_run(to, first, from.column, steps);
        for (int64_t i = 0; i < steps; i++) read_run(to + i * pitch, first + i * from.column, from.row, channels);
    });
}
template <class T>
void write_tile(const T* from, int pitch, const Matrix& to, int64_t lead, int64_t channel, int channels, int64_t step, int64_t steps) {
    with_storage(to.type, [&](auto storage) {
        using S = typename decltype(storage)::type;
        S* first = static_cast<S*>(to.data) + lead * to.lead + channel * to.row + step * to.column;
        if (pitch == 1) return write_run(first, from, to.column, steps);
        for (int64_t i = 0; i < steps; i++) write_run(first + i * to.column, from + i * pitch, to.row, channels);
    });
}

}  // namespace scanlab::SCANLAB_ISA
