// Runs and tiles: strided elements of any storage type as dense numbers of the arithmetic type, and back.
#pragma once

#include "cpu/mixer.h"
#include "cpu/math.h"

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

// Functions of single vectors.
template <class T>
SCANLAB_INLINE Vec<T> sigmoid(Vec<T> x) {
    return sigmoid(Pack<T, 1>{{x}}).of[0];
}
template <class T>
SCANLAB_INLINE Vec<T> softplus(Vec<T> x) {
    return softplus(Pack<T, 1>{{x}}).of[0];
}
template <class T>
SCANLAB_INLINE Vec<T> exp2(Vec<T> x) {
    if constexpr (sizeof(T) == 8) return exp2_polynomial(Pack<T, 1>{{x}}, exp2_double).of[0];
    else return exp2_polynomial(Pack<T, 1>{{x}}, exp2_float).of[0];
}

// The storage type of dense numbers of the arithmetic type.
template <class T>
inline constexpr Type type_of = sizeof(T) == 8 ? Type::float64 : Type::float32;

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

template <class T>
SCANLAB_INLINE T sum_of(Vec<T> values) {
    T parts[lanes<T>];
    store<T>(parts, values);
#pragma GCC unroll 4
    for (int half = lanes<T> / 2; half; half /= 2)
        for (int i = 0; i < half; i++) parts[i] += parts[i + half];
    return parts[0];
}

template <int odd, class V, int... lane>
SCANLAB_INLINE V every_other(V a, V b, Lanes<lane...>) {
    return __builtin_shufflevector(a, b, (2 * lane + odd)...);
}

template <int from, class V, int... lane>
SCANLAB_INLINE V interleaved(V a, V b, Lanes<lane...>) {
    constexpr int width = sizeof...(lane);
    return __builtin_shufflevector(a, b, (lane % 2 * width + from + lane / 2)...);
}

// Four adjacent steps of a whole vector of channels, as a state or weights of width 4 have them, and back.
template <class T, class S>
SCANLAB_INLINE void read_fours(T* to, const S* from) {
    const typename CountTo<lanes<T>>::type all;
    Vec<T> a = load<T>(from), b = load<T>(from + lanes<T>), c = load<T>(from + 2 * lanes<T>), d = load<T>(from + 3 * lanes<T>);
    const Vec<T> even = every_other<0>(a, b, all), odd = every_other<1>(a, b, all);
    const Vec<T> evens = every_other<0>(c, d, all), odds = every_other<1>(c, d, all);
    store<T>(to, every_other<0>(even, evens, all));
    store<T>(to + lanes<T>, every_other<0>(odd, odds, all));
    store<T>(to + 2 * lanes<T>, every_other<1>(even, evens, all));
    store<T>(to + 3 * lanes<T>, every_other<1>(odd, odds, all));
}
template <class T, class S>
SCANLAB_INLINE void write_fours(S* to, const T* from) {
    const typename CountTo<lanes<T>>::type all;
    constexpr int half = lanes<T> / 2;
    Vec<T> a = load<T>(from), b = load<T>(from + lanes<T>), c = load<T>(from + 2 * lanes<T>), d = load<T>(from + 3 * lanes<T>);
    const Vec<T> even = interleaved<0>(a, c, all), evens = interleaved<half>(a, c, all);
    const Vec<T> odd = interleaved<0>(b, d, all), odds = interleaved<half>(b, d, all);
    store<T>(to, interleaved<0>(even, odd, all));
    store<T>(to + lanes<T>, interleaved<half>(even, odd, all));
    store<T>(to + 2 * lanes<T>, interleaved<0>(evens, odds, all));
    store<T>(to + 3 * lanes<T>, interleaved<half>(evens, odds, all));
}
template <class T>
SCANLAB_INLINE bool are_fours(int pitch, const Matrix& tensor, int channels, int64_t steps) {
    return steps == 4 && tensor.row == 4 && tensor.column == 1 && channels == lanes<T> && pitch == lanes<T>;
}

// A tile holds `steps` time steps, `pitch` elements apart: of `channels` channels and zeros up to a whole
// vector, or, with a pitch of 1, of one channel. Here (row, column) of the tensor is (channel, time).
template <class T>
void read_tile(T* to, int pitch, const Matrix& from, int64_t lead, int64_t channel, int channels, int64_t step, int64_t steps) {
    with_storage(from.type, [&](auto storage) {
        using S = typename decltype(storage)::type;
        const S* first = static_cast<const S*>(from.data) + lead * from.lead + channel * from.row + step * from.column;
        if (pitch == 1) return read_run(to, first, from.column, steps);
        if constexpr (vectors<T, S>)
            if (are_fours<T>(pitch, from, channels, steps)) return read_fours(to, first);
        for (int64_t i = 0; i < steps; i++) read_run(to + i * pitch, first + i * from.column, from.row, channels);
    });
}
template <class T>
void write_tile(const T* from, int pitch, const Matrix& to, int64_t lead, int64_t channel, int channels, int64_t step, int64_t steps) {
    with_storage(to.type, [&](auto storage) {
        using S = typename decltype(storage)::type;
        S* first = static_cast<S*>(to.data) + lead * to.lead + channel * to.row + step * to.column;
        if (pitch == 1) return write_run(first, from, to.column, steps);
        if constexpr (vectors<T, S>)
            if (are_fours<T>(pitch, to, channels, steps)) return write_fours(first, from);
        for (int64_t i = 0; i < steps; i++) write_run(first + i * to.column, from + i * pitch, to.row, channels);
    });
}

}  // namespace scanlab::SCANLAB_ISA
