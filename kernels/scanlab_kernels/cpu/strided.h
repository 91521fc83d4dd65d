// Strided tensors of any storage type as dense numbers of the arithmetic type T, and back: blocks of time as rows in
// the order of a scan, runs along one axis, and tiles of channels and steps.
#pragma once

#include "cpu/math.h"

namespace scanlab::SCANLAB_TARGET {

// Row i of a block holds the values of time step i, adjacent in memory, `step` elements after row i - 1.
template <class T>
struct Rows {
    const T* first;
    int64_t step;
    SCANLAB_INLINE const T* operator[](int i) const { return first + i * step; }
};

inline int64_t size_of(Type type) { return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2; }

// A block of a strided tensor: element (i, j) of time step i and column j lies i time + j column elements on.
struct Strided {
    Type type;
    char* data;
    int64_t time, column;
};

// Calls work with the typed start of a block; T is stored as itself or, where it is float, in half of its bits.
template <class T, class Work>
SCANLAB_INLINE void typed(const Strided& block, const Work& work) {
    if constexpr (sizeof(T) == 4) {
        if (block.type == Type::bfloat16) return work(reinterpret_cast<bfloat16*>(block.data));
        if (block.type == Type::float16) return work(reinterpret_cast<float16*>(block.data));
    }
    work(reinterpret_cast<T*>(block.data));
}

// The block as T's own memory where each of its rows is adjacent there; otherwise none.
template <class T>
Rows<T> rows_in_place(const Strided& block) {
    const bool same = block.type == (sizeof(T) == 4 ? Type::float32 : Type::float64);
    return {same && block.column == 1 ? reinterpret_cast<const T*>(block.data) : nullptr, block.time};
}

template <class T, class S>
SCANLAB_INLINE T scalar(const S& value) {
    if constexpr (sizeof(S) == 2) return load_some<T>(&value, 1)[0];
    else return value;
}
template <class T, class S>
SCANLAB_INLINE void put_scalar(S& to, T value, bool add) {
    if (add) value += scalar<T>(to);
    if constexpr (sizeof(S) == 2) store_some<T>(&to, broadcast(value), 1);
    else to = value;
}

// Lanes of one vector to adjacent elements, or added to them.
template <class T, class S>
SCANLAB_INLINE void put(S* to, Vec<T> value, int count, bool add) {
    if (add) value += load_some<T>(to, count);
    store_some<T>(to, value, count);
}

// The columns of one square as the rows of another, or added to them. Not inline: a loop around it would keep the
// addresses of all rows, for which there are no registers.
template <class T, class From, class To>
__attribute__((noinline)) void transpose(const From* from, int64_t from_step, To* to, int64_t to_step, bool add) {
    constexpr int width = lanes<T>;
    Vec<T> columns[width];
    if constexpr (sizeof(From) == sizeof(T)) {
        load_columns<T>(from, from_step, columns);
    } else {
        T square[width * width];
        for (int i = 0; i < width; i++) store<T>(square + i * width, load<T>(from + i * from_step));
        load_columns<T>(square, width, columns);
    }
#pragma GCC unroll 16
    for (int i = 0; i < width; i++) put<T>(to + i * to_step, columns[i], width, add);
}

// Copies a block to rows of T that are `to_step` apart. Where times are adjacent instead of columns, whole
// squares are read along time and transposed in registers.
template <class T, class S>
void read_rows(const S* from, int64_t time, int64_t column, int steps, int columns, T* to, int64_t to_step) {
    constexpr int width = lanes<T>;
    const int whole = columns / width * width, rest = columns - whole;
    if (column == 1) {
        for (int j = 0; j < whole; j += width)
            for (int i = 0; i < steps; i++) store<T>(to + i * to_step + j, load<T>(from + i * time + j));
        if (rest)
            for (int i = 0; i < steps; i++)
                store<T>(to + i * to_step + whole, load_some<T>(from + i * time + whole, rest));
        return;
    }
    if (rest)  // lanes without a column are zero
        for (int i = 0; i < steps; i++) store<T>(to + i * to_step + whole, Vec<T>{});
    const bool along_time = time == 1 || time == -1;
    const int transposed_steps = along_time ? steps / width * width : 0, transposed_columns = whole;
    for (int i = 0; i < transposed_steps; i += width) {
        // Backwards in time a run of adjacent elements starts at the last of its steps.
        const S* corner = from + (time > 0 ? i : -(i + width - 1));
        T* const row = to + (time > 0 ? i : i + width - 1) * to_step;
        for (int j = 0; j < transposed_columns; j += width)
            transpose<T>(corner + j * column, column, row + j, time * to_step, false);
    }
    for (int i = 0; i < steps; i++)
        for (int j = i < transposed_steps ? transposed_columns : 0; j < columns; j++)
            to[i * to_step + j] = scalar<T>(from[i * time + j * column]);
}

// The reverse: rows of one vector each, `from_step` apart, to a block, or added to it.
template <class T, class S>
void write_rows(S* to, int64_t time, int64_t column, int steps, int columns, const T* from, int64_t from_step,
                bool add) {
    constexpr int width = lanes<T>;
    if (column == 1) {
        for (int i = 0; i < steps; i++) put<T>(to + i * time, load(from + i * from_step), columns, add);
        return;
    }
    const bool squares = (time == 1 || time == -1) && columns == width;
    const int transposed_steps = squares ? steps / width * width : 0;
    for (int i = 0; i < transposed_steps; i += width) {
        S* corner = to + (time > 0 ? i : -(i + width - 1));
        const T* const row = from + (time > 0 ? i : i + width - 1) * from_step;
        transpose<T>(row, time * from_step, corner, column, add);
    }
    for (int i = transposed_steps; i < steps; i++)
        for (int j = 0; j < columns; j++) put_scalar<T>(to[i * time + j * column], from[i * from_step + j], add);
}

// The block as rows of T: in place where the tensor already has that form, otherwise copied to `buffer`, whose
// rows are `buffer_step` (a multiple of the lanes) apart. With `whole_vectors` every row can be read as vectors.
template <class T>
Rows<T> rows(const Strided& block, int steps, int columns, bool whole_vectors, T* buffer, int64_t buffer_step) {
    const Rows<T> in_place = rows_in_place<T>(block);
    if (in_place.first && !(whole_vectors && columns % lanes<T>)) return in_place;
    typed<T>(block, [&](const auto* from) {
        read_rows<T>(from, block.time, block.column, steps, columns, buffer, buffer_step);
    });
    return {buffer, buffer_step};
}

template <class T>
void write_block(const Strided& block, int steps, int columns, const T* from, bool add) {
    typed<T>(block,
             [&](auto* to) { write_rows<T>(to, block.time, block.column, steps, columns, from, lanes<T>, add); });
}

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

// True where whole vectors of S can be loaded as vectors of T.
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
    Vec<T> a = load<T>(from), b = load<T>(from + lanes<T>), c = load<T>(from + 2 * lanes<T>),
           d = load<T>(from + 3 * lanes<T>);
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
    Vec<T> a = load<T>(from), b = load<T>(from + lanes<T>), c = load<T>(from + 2 * lanes<T>),
           d = load<T>(from + 3 * lanes<T>);
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
void read_tile(T* to, int pitch, const Matrix& from, int64_t lead, int64_t channel, int channels, int64_t step,
               int64_t steps) {
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
void write_tile(const T* from, int pitch, const Matrix& to, int64_t lead, int64_t channel, int channels, int64_t step,
                int64_t steps) {
    with_storage(to.type, [&](auto storage) {
        using S = typename decltype(storage)::type;
        S* first = static_cast<S*>(to.data) + lead * to.lead + channel * to.row + step * to.column;
        if (pitch == 1) return write_run(first, from, to.column, steps);
        if constexpr (vectors<T, S>)
            if (are_fours<T>(pitch, to, channels, steps)) return write_fours(first, from);
        for (int64_t i = 0; i < steps; i++) write_run(first + i * to.column, from + i * pitch, to.row, channels);
    });
}

}  // namespace scanlab::SCANLAB_TARGET
