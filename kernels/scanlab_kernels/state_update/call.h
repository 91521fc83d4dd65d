// A decoding step of the scan on torch's tensors, checked and described to the kernels.
#pragma once

#include "cpu/library.h"
#include "state_update/native.h"

namespace scanlab::mixer {

// The constructor raises before anything is written; `run` writes the state and `out`. Inputs that lie in the
// memory of the state were copied before.
struct StateUpdateCall {
    StateUpdateCall(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                    const Tensor& C, const Tensor& D, const Tensor& z, const Tensor& dt_bias, const Tensor& out,
                    bool softplus, const Tensor& rows, bool log_A);
    void run();

private:
    StateUpdate update;
    Tensor state;
    std::vector<Tensor> kept;
};

}  // namespace scanlab::mixer
