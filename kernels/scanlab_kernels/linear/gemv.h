// A linear layer on a few rows: as fast as its weight comes out of memory, which is read once.
#pragma once

#include "cpu/strided.h"
#include "linear/native.h"

namespace scanlab::SCANLAB_TARGET {

using mixer::Gemv;

inline constexpr int gemv_features = 8;  // of a task, whose sums over the lanes are taken together

// Products of `rows` rows of x with one row of the weight, not yet summed over the lanes. The weight is read from its
// first element to its last: the hardware fetches one such stream ahead of its use, but not several in a page.
template <int rows, class S>
SCANLAB_INLINE void multiply_row(const float* x, int64_t depth, const S* weight, Vec<float> (&sums)[rows]) {
    constexpr int width = lanes<float>, chains = 4;  // sums that do not wait for each other
    Vec<float> partial[rows][chains] = {};
    int64_t k = 0;
    for (; k + chains * width <= depth; k += chains * width) {
#pragma GCC unroll 4
        for (int c = 0; c < chains; c++) {
            const Vec<float> factor = load<float>(weight + k + c * width);
#pragma GCC unroll 2
            for (int r = 0; r < rows; r++)
                partial[r][c] = multiply_add(load<float>(x + r * depth + k + c * width), factor, partial[r][c]);
        }
    }
    for (; k < depth; k += width) {
        const int some = int(smaller(depth - k, width));
        const Vec<float> factor = load_some<float>(weight + k, some);
        for (int r = 0; r < rows; r++)
            partial[r][0] = multiply_add(load_some<float>(x + r * depth + k, some), factor, partial[r][0]);
    }
    for (int r = 0; r < rows; r++) sums[r] = (partial[r][0] + partial[r][1]) + (partial[r][2] + partial[r][3]);
}

// The products of `rows` adjacent rows of x with `count` rows of the weight.
template <int rows, class S>
SCANLAB_INLINE void multiply_rows(const Gemv& linear, int64_t row, int64_t first, int count) {
    const S* const weight = static_cast<const S*>(linear.weight) + first * linear.weight_row;
    Vec<float> sums[rows][gemv_features] = {};
    for (int f = 0; f < count; f++) {
        Vec<float> of_row[rows];
        multiply_row<rows>(linear.x + row * linear.depth, linear.depth, weight + f * linear.weight_row, of_row);
        for (int r = 0; r < rows; r++) sums[r][f] = of_row[r];
    }
    for (int r = 0; r < rows; r++) {
        float totals[gemv_features + lanes<float>];
        sum_rows<float>(sums[r], totals, false);
        S* const out = static_cast<S*>(linear.out) + (row + r) * linear.features + first;
        for (int f = 0; f < count; f++)
            set_number<float>(out + f, linear.bias ? totals[f] + linear.bias[first + f] : totals[f]);
    }
}

template <class S>
void multiply_tasks(const Gemv& linear, int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
        const int64_t first = task * gemv_features;
        const int count = int(smaller(gemv_features, linear.features - first));
        int64_t row = 0;
        for (; row + 2 <= linear.rows; row += 2) multiply_rows<2, S>(linear, row, first, count);
        if (row < linear.rows) multiply_rows<1, S>(linear, row, first, count);
    }
}

void multiply_gemv(const Gemv& linear, int64_t begin, int64_t end) {
    switch (linear.type) {
        case Type::float32: return multiply_tasks<float>(linear, begin, end);
        case Type::bfloat16: return multiply_tasks<bfloat16>(linear, begin, end);
        case Type::float16: return multiply_tasks<float16>(linear, begin, end);
        case Type::float64: break;  // refused before
    }
}

}  // namespace scanlab::SCANLAB_TARGET
