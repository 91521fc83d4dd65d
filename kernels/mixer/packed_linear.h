// A linear layer on many rows of float32, with its weight packed in the order in which it is read.
//
// A panel holds the weights of 48 features, or of what is left rounded up to 16, feature beside feature for each
// element of the depth: one, three or twelve whole vectors on every instruction set, which therefore share one form.
#pragma once

#include "tiles.h"

namespace scanlab::SCANLAB_ISA {

using mixer::PackedLinear;
using mixer::panel_features;

// Sums that stay in registers, beside the weights that meet them and one element of x.
inline constexpr int tile_rows = SCANLAB_REGISTERS == 32 ? 8 : 4, tile_vectors = 3, block_rows = 64;
static_assert(tile_rows <= mixer::row_step && mixer::row_step % tile_rows == 0);

// Rows [row, row + tile_rows) and `vectors` vectors of features; past the last row stands the last one again.
template <int vectors>
SCANLAB_INLINE void multiply_tile(const PackedLinear& linear, int64_t row, int64_t rows, int64_t feature, const float* weights, int64_t pitch) {
    constexpr int width = lanes<float>;
    const auto left = [&](int v) { return int(smaller(width, larger(0, linear.features - feature - v * width))); };
    Vec<float> sum[tile_rows][vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        const Vec<float> bias = linear.bias ? load_some<float>(linear.bias + feature + v * width, left(v)) : Vec<float>{};
#pragma GCC unroll 8
        for (int r = 0; r < tile_rows; r++) sum[r][v] = bias;
    }
    const float* x[tile_rows];
    for (int r = 0; r < tile_rows; r++) x[r] = linear.x + smaller(row + r, rows - 1) * linear.x_row;
    for (int64_t k = 0; k < linear.depth; k++, weights += pitch) {
        Vec<float> weight[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) weight[v] = load<float>(weights + v * width);
#pragma GCC unroll 8
        for (int r = 0; r < tile_rows; r++) {
            const Vec<float> one = broadcast(x[r][k]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[r][v] = multiply_add(one, weight[v], sum[r][v]);
        }
    }
    for (int r = 0; r < tile_rows && row + r < rows; r++)
        for (int v = 0; v < vectors; v++)
            store_some<float>(linear.out + (row + r) * linear.out_row + feature + v * width, sum[r][v], left(v));
}

SCANLAB_INLINE int64_t panels_of(const PackedLinear& linear) {
    return (linear.features + panel_features - 1) / panel_features;
}

// Rows [row, rows) of panels [first, last), a block of rows at a time: the panels of a block come out of the caches,
// and what it writes lies on few pages.
void multiply_packed(const PackedLinear& linear, int64_t row, int64_t rows, int64_t first, int64_t last) {
    constexpr int width = lanes<float>;
    for (int64_t block = row; block < rows; block += block_rows) {
        const int64_t end = smaller(block + block_rows, rows);
        for (int64_t panel = first; panel < last; panel++) {
            const int64_t begin = panel * panel_features;
            const int64_t pitch = smaller(panel_features, (linear.features - begin + 15) / 16 * 16);
            for (int64_t column = 0; column < pitch; column += tile_vectors * width) {
                const float* weights = linear.packed + begin * linear.depth + column;
                const int64_t vectors = smaller(tile_vectors, (pitch - column) / width);
                for (int64_t at = block; at < end; at += tile_rows) {
                    if (vectors == 3) multiply_tile<3>(linear, at, end, begin + column, weights, pitch);
                    else if (vectors == 2) multiply_tile<2>(linear, at, end, begin + column, weights, pitch);
                    else multiply_tile<1>(linear, at, end, begin + column, weights, pitch);
                }
            }
        }
    }
}

}  // namespace scanlab::SCANLAB_ISA
