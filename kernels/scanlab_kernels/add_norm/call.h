// The residual add with a norm of torch's tensors.
#pragma once

#include <tuple>

#include "cpu/tensor.h"

namespace scanlab::mixer {

// The normalised sum, and the sum.
using NormOutputs = std::tuple<Tensor, Tensor>;

NormOutputs add_norm(const Tensor& hidden, const OptionalTensor& residual, const Tensor& weight,
                     const OptionalTensor& bias, double eps, bool centred, bool wide_total);

}  // namespace scanlab::mixer
