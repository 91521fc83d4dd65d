// Blocks of time: strided tensors of any storage type as rows of T in the order of the scan, and back.
#pragma once

#include "native_math.h"

namespace scanlab::SCANLAB_ISA {

// Row i of a block holds the values of time step i, adjacent in memory, `step` elements after row i - 1.
template <class T>
struct Rows {
    const T* first;
    int64_t step;
    SCANLAB_INLINE const T* operator[](int i) const { return first + i * step; }
};

// A block of a strided tensor: element (i, j) of time step i and column j at data[i * time + j * column].
template <class S>
struct Strided {
    S* data;
    int64_t time, column;
    S* at(int64_t i) const { return data + i * time; }
};

template <class T, class S>
SCANLAB_INLINE T scalar(const S& value) {
    if constexpr (sizeof(S) == 2) {
        return load_some<T>(&value, 1)[0];
    } else {
        return value;
    }
}

// Reads columns of adjacent times as squares and turns them; `columns` beyond the tensor become zero.
template <class T, class S>
void read_turned(Strided<const S> from, int steps, int columns, T* to, int64_t to_step) {
    constexpr int width = lanes<T>;
    for (int i = 0; i < steps; i += width) {
        const int times = steps - i < width ? steps - i : width;
        // Backwards in time a run of adjacent elements starts at the last of its steps.
        const S* corner = from.at(from.time > 0 ? i : i + times - 1);
        for (int j = 0; j < columns; j += width) {
            Vec<T> square[width];
#pragma GCC unroll 16
            for (int k = 0; k < width; k++)
                square[k] = j + k < columns ? load_some<T>(corner + (j + k) * from.column, times) : Vec<T>{};
            transpose<T>(square);
#pragma GCC unroll 16
            for (int k = 0; k < width; k++)
                if (k < times) store<T>(to + (i + (from.time > 0 ? k : times - 1 - k)) * to_step + j, square[k]);
        }
    }
}

// The block as rows of T: in place where the tensor already has that form, otherwise copied to `buffer`,
// whose rows are `buffer_step` (a multiple of the lanes) apart. A vector read from a row in place may pass
// the last column only where columns is a multiple of the lanes.
template <class T, class S>
Rows<T> rows(Strided<const S> from, int steps, int columns, bool whole_vectors, T* buffer, int64_t buffer_step) {
    constexpr int width = lanes<T>;
    if constexpr (sizeof(S) == sizeof(T)) {
        if (from.column == 1 && !(whole_vectors && columns % width)) return {from.data, from.time};
    }
    if (from.column == 1) {
        for (int i = 0; i < steps; i++)
            for (int j = 0; j < columns; j += width)
                store<T>(buffer + i * buffer_step + j, load_some<T>(from.at(i) + j, columns - j));
    } else if (from.time == 1 || from.time == -1) {
        read_turned(from, steps, columns, buffer, buffer_step);
    } else {
        for (int i = 0; i < steps; i++)
            for (int j = 0; j < columns; j++) buffer[i * buffer_step + j] = scalar<T>(from.at(i)[j * from.column]);
    }
    return {buffer, buffer_step};
}

// Writes one vector of columns for one step, or adds it to what is there.
template <class T, class S>
SCANLAB_INLINE void put(S* to, Vec<T> value, int columns, bool add) {
    if (add) value += load_some<T>(to, columns);
    store_some<T>(to, value, columns);
}

// Writes rows of one vector each to a strided tensor whose columns are not adjacent, or adds them.
template <class T, class S>
void write_rows(Strided<S> to, int steps, int columns, const T* from, bool add) {
    constexpr int width = lanes<T>;
    for (int i = 0; i < steps; i += width) {
        const int times = steps - i < width ? steps - i : width;
        if (to.time == 1 || to.time == -1) {
            S* corner = to.at(to.time > 0 ? i : i + times - 1);
            Vec<T> square[width];
#pragma GCC unroll 16
            for (int k = 0; k < width; k++)
                square[k] = k < times ? load(from + (i + (to.time > 0 ? k : times - 1 - k)) * width) : Vec<T>{};
            transpose<T>(square);
#pragma GCC unroll 16
            for (int k = 0; k < width; k++)
                if (k < columns) put<T>(corner + k * to.column, square[k], times, add);
        } else {
            for (int k = 0; k < times; k++)
                for (int j = 0; j < columns; j++) {
                    Vec<T> value = broadcast(from[(i + k) * width + j]);
                    put<T>(to.at(i + k) + j * to.column, value, 1, add);
                }
        }
    }
}

}  // namespace scanlab::SCANLAB_ISA
