// Products of small matrices, a tile of the result in registers.
#pragma once

#include "cpu/strided.h"

namespace scanlab::SCANLAB_TARGET {

// Sums that stay in registers, beside the vectors that meet them and one number of the left matrix.
inline constexpr int tile_rows = SCANLAB_REGISTERS == 32 ? 6 : 4, tile_vectors = SCANLAB_REGISTERS == 32 ? 4 : 3;

template <int vectors>
using Sums = Vec<float>[tile_rows][vectors];

// The rows of a left matrix that meet a tile; past the last one stands the last one again.
struct LeftRows {
    const float* row[tile_rows];

    LeftRows() = default;
    LeftRows(Rows<float> matrix, int64_t first, int64_t rows) {
        for (int r = 0; r < tile_rows; r++) row[r] = matrix[int(smaller(first + r, rows - 1))];
    }
    // The same rows from another column on.
    LeftRows from(int64_t column) const {
        LeftRows shifted;
        for (int r = 0; r < tile_rows; r++) shifted.row[r] = row[r] + column;
        return shifted;
    }
};

// sum[r][v] += left[r][k] right[k][v] over k < depth.
template <int vectors>
SCANLAB_INLINE void multiply(Sums<vectors>& sum, const LeftRows& left, Rows<float> right, int64_t depth) {
    const float* from = right.first;
    for (int64_t k = 0; k < depth; k++, from += right.step) {
        Vec<float> own[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) own[v] = load<float>(from + v * lanes<float>);
#pragma GCC unroll 8
        for (int r = 0; r < tile_rows; r++) {
            const Vec<float> one = broadcast(left.row[r][k]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[r][v] = multiply_add(one, own[v], sum[r][v]);
        }
    }
}

// The same over k <= first + r, so that no row meets a later one; rows of `right` end before `end`.
template <int vectors>
SCANLAB_INLINE void multiply_below(Sums<vectors>& sum, const LeftRows& left, Rows<float> right, int64_t first,
                                   int64_t end) {
    multiply<vectors>(sum, left, right, first);
#pragma GCC unroll 8
    for (int k = 0; k < tile_rows; k++)
        if (first + k < end)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) {
                const Vec<float> own = load<float>(right[int(first + k)] + v * lanes<float>);
#pragma GCC unroll 8
                for (int r = k; r < tile_rows; r++)
                    sum[r][v] = multiply_add(broadcast(left.row[r][first + k]), own, sum[r][v]);
            }
}

// The same over first + r <= k < end, so that no row meets an earlier one.
template <int vectors>
SCANLAB_INLINE void multiply_above(Sums<vectors>& sum, const LeftRows& left, Rows<float> right, int64_t first,
                                   int64_t end) {
#pragma GCC unroll 8
    for (int k = 0; k < tile_rows; k++)
        if (first + k < end)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) {
                const Vec<float> own = load<float>(right[int(first + k)] + v * lanes<float>);
#pragma GCC unroll 8
                for (int r = 0; r <= k; r++)
                    sum[r][v] = multiply_add(broadcast(left.row[r][first + k]), own, sum[r][v]);
            }
    const int64_t rest = first + tile_rows;
    if (rest < end) multiply<vectors>(sum, left.from(rest), {right[int(rest)], right.step}, end - rest);
}

template <int number>
struct Constant {
    static constexpr int value = number;
};

// Calls act(column, Constant<vectors>) for tiles of whole vectors that cover `columns`.
template <class Act>
SCANLAB_INLINE void for_columns(int64_t columns, const Act& act) {
    constexpr int width = lanes<float>;
    for (int64_t column = 0; column < columns; column += tile_vectors * width) {
        const int64_t vectors = (columns - column + width - 1) / width;
        if (tile_vectors == 4 && vectors >= 4) act(column, Constant<tile_vectors>());
        else if (vectors >= 3) act(column, Constant<3>());
        else if (vectors == 2) act(column, Constant<2>());
        else act(column, Constant<1>());
    }
}

// Calls act(r, v, sum) for each vector of a tile whose row is before `rows`.
template <int vectors, class Act>
SCANLAB_INLINE void for_sums(Sums<vectors>& sum, int64_t rows, const Act& act) {
#pragma GCC unroll 8
    for (int r = 0; r < tile_rows; r++)
        if (r < rows)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) act(r, v * lanes<float>, sum[r][v]);
}

// Calls put(row, column, vector) for the vectors of the product of `left`, which has `rows` rows, and `right`.
template <class Put>
SCANLAB_INLINE void product(Rows<float> left, int64_t rows, Rows<float> right, int64_t columns, int64_t depth,
                            const Put& put) {
    for (int64_t row = 0; row < rows; row += tile_rows) {
        const LeftRows own(left, row, rows);
        for_columns(columns, [&](int64_t column, auto vectors) {
            Sums<vectors.value> sum = {};
            multiply<vectors.value>(sum, own, {right.first + column, right.step}, depth);
            for_sums<vectors.value>(sum, rows - row,
                                    [&](int r, int v, Vec<float> value) { put(row + r, column + v, value); });
        });
    }
}

// The same of a square, for the vectors that reach the diagonal or lie above it.
template <class Put>
SCANLAB_INLINE void product_above(Rows<float> left, int64_t size, Rows<float> right, int64_t depth, const Put& put) {
    for (int64_t row = 0; row < size; row += tile_rows) {
        const int64_t first = row / lanes<float> * lanes<float>;
        const auto put_here = [&](int64_t r, int64_t column, Vec<float> value)
                                  SCANLAB_ALWAYS_INLINE { put(row + r, first + column, value); };
        product({left[int(row)], left.step}, smaller(tile_rows, size - row), {right.first + first, right.step},
                size - first, depth, put_here);
    }
}

}  // namespace scanlab::SCANLAB_TARGET
