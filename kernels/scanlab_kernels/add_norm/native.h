// A residual add with a norm, as the kernels see it.
#pragma once

#include "cpu/types.h"

namespace scanlab::mixer {

// The row of each of total = hidden + residual, and its normalised image.
struct Norm {
    int64_t rows = 0, dim = 0;
    bool wide = false, centred = false;  // centred: LayerNorm
    double eps = 0;
    Matrix hidden, residual, total, out;
    Matrix weight, bias;  // one row
    Matrix grad_out, grad_total, grad;
    void* partials = nullptr;  // backward: (chunks of norm_rows rows, 2, dim)
};
inline constexpr int64_t norm_rows = 64;

}  // namespace scanlab::mixer
