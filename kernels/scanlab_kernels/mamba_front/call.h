// The fused front half of a Mamba block on torch's tensors.
#pragma once

#include <tuple>

#include "cpu/tensor.h"

namespace scanlab::mixer {

// z, then u, what is selected and delta of the forward direction, then of the reverse one; empty where there is none.
using FrontOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

FrontOutputs mamba_front(const Tensor& hidden, const Tensor& into, const OptionalTensor& into_bias, const Tensor& gate,
                         const OptionalTensor& gate_bias, const Tensor& weight, const OptionalTensor& bias,
                         const Tensor& select, const Tensor& step, const OptionalTensor& weight_reverse,
                         const OptionalTensor& bias_reverse, const OptionalTensor& select_reverse,
                         const OptionalTensor& step_reverse, int64_t rank, int64_t selected);

}  // namespace scanlab::mixer
