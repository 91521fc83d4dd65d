// Blocks of time: strided tensors of any storage type as rows of T in the order of the scan, and back.
#pragma once

#include "cpu/math.h"

namespace scanlab::SCANLAB_ISA {

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

// Lanes of one vector to adjacent elements, or added to what is there.
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
// squares are read along time and turned in registers.
template <class T, class S>
void read_rows(const S* from, int64_t time, int64_t column, int steps, int columns, T* to, int64_t to_step) {
    constexpr int width = lanes<T>;
    const int whole = columns / width * width, rest = columns - whole;
    if (column == 1) {
        for (int j = 0; j < whole; j += width)
            for (int i = 0; i < steps; i++) store<T>(to + i * to_step + j, load<T>(from + i * time + j));
        if (rest)
            for (int i = 0; i < steps; i++) store<T>(to + i * to_step + whole, load_some<T>(from + i * time + whole, rest));
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
        for (int j = 0; j < transposed_columns; j += width) transpose<T>(corner + j * column, column, row + j, time * to_step, false);
    }
    for (int i = 0; i < steps; i++)
        for (int j = i < transposed_steps ? transposed_columns : 0; j < columns; j++)
            to[i * to_step + j] = scalar<T>(from[i * time + j * column]);
}

// The reverse: rows of one vector each, `from_step` apart, to a block, or added to what is there.
template <class T, class S>
void write_rows(S* to, int64_t time, int64_t column, int steps, int columns, const T* from, int64_t from_step, bool add) {
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
    typed<T>(block, [&](const auto* from) { read_rows<T>(from, block.time, block.column, steps, columns, buffer, buffer_step); });
    return {buffer, buffer_step};
}

template <class T>
void write_block(const Strided& block, int steps, int columns, const T* from, bool add) {
    typed<T>(block, [&](auto* to) { write_rows<T>(to, block.time, block.column, steps, columns, from, lanes<T>, add); });
}

}  // namespace scanlab::SCANLAB_ISA
