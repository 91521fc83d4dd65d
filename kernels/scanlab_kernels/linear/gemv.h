// A linear layer on a few rows of float32: as fast as its weight comes out of memory, which is read once.
#pragma once

#include "cpu/strided.h"
#include "linear/native.h"

namespace scanlab::SCANLAB_TARGET {

using mixer::Gemv;

inline constexpr int gemv_features = SCANLAB_REGISTERS / 4;  // of a task; their sums for two rows stay in registers

// Dot products of `rows` adjacent rows of x with the weights of a task, `count` of which are different.
template <int rows>
SCANLAB_INLINE void multiply_rows(const Gemv& linear, const float* const (&weights)[gemv_features], int64_t row,
                                  int64_t first, int count) {
    constexpr int width = lanes<float>;
    const float* const x = linear.x + row * linear.depth;
    Vec<float> sums[rows][gemv_features] = {};
    const auto add = [&](int64_t k, int some) {
        Vec<float> values[rows];
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++) values[r] = load_some<float>(x + r * linear.depth + k, some);
#pragma GCC unroll 8
        for (int f = 0; f < gemv_features; f++) {
            const Vec<float> weight = load_some<float>(weights[f] + k, some);
#pragma GCC unroll 2
            for (int r = 0; r < rows; r++) sums[r][f] = multiply_add(values[r], weight, sums[r][f]);
        }
    };
    int64_t k = 0;
    for (; k + width <= linear.depth; k += width) add(k, width);
    if (k < linear.depth) add(k, int(linear.depth - k));
    for (int r = 0; r < rows; r++) {
        float totals[gemv_features + width];
        sum_rows<float>(sums[r], totals, false);
        float* const out = linear.out + (row + r) * linear.features + first;
        for (int f = 0; f < count; f++) out[f] = linear.bias ? totals[f] + linear.bias[first + f] : totals[f];
    }
}

void multiply_gemv(const Gemv& linear, int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
        const int64_t first = task * gemv_features;
        const int count = int(smaller(gemv_features, linear.features - first));
        const float* weights[gemv_features];
        for (int f = 0; f < gemv_features; f++)  // past the last feature stands the last one again
            weights[f] = linear.weight + (first + smaller(f, count - 1)) * linear.weight_row;
        int64_t row = 0;
        for (; row + 2 <= linear.rows; row += 2) multiply_rows<2>(linear, weights, row, first, count);
        if (row < linear.rows) multiply_rows<1>(linear, weights, row, first, count);
    }
}

}  // namespace scanlab::SCANLAB_TARGET
