// Products of torch's tensors, checked and described to the kernels.
#pragma once

#include "cpu/library.h"
#include "linear/native.h"

namespace scanlab::mixer {

// Beyond, torch's own product is as fast.
inline constexpr int64_t max_gemv_rows = 8;

// Writes x weight^T + bias of few rows to `out`, which is dense.
void multiply_gemv(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& out);

inline int64_t padded(int64_t features) { return (features + 15) / 16 * 16; }
inline int64_t panels(int64_t features) { return (features + panel_features - 1) / panel_features; }

// The product of rows x with a packed weight; `bias` is dense float32.
PackedLinear product(const Tensor& x, const Tensor& packed, const Tensor& bias, int64_t features, const Tensor& out);

// x (..., in) times a packed weight of `features` rows, plus bias.
Tensor packed_linear(const Tensor& x, const Tensor& packed, const OptionalTensor& bias, int64_t features);

// The products of the storage type of x; raises where this machine has none.
const Products& products_of(const Tensor& x);

}  // namespace scanlab::mixer
