// A random scan with all the memory that it and its gradients need.
#pragma once

#include "tensors.h"

namespace scanlab::test {

// The tensors of one direction, and of their gradients. Complex ones have a last axis of (real, imaginary).
struct DirectionTensors {
    Tensor u, delta, z, A, B, C, D, delta_bias, initial, last, grad_last;
    Tensor grad_u, grad_delta, grad_z, grad_A, grad_B, grad_C, grad_D, grad_delta_bias, grad_initial;
};

// A scan with the memory that it points to.
struct Case {
    Scan scan;
    Gradient gradient;
    DirectionTensors direction[2];
    Tensor out, grad_out, checkpoints, terms;
    int parts() const { return scan.complex ? 2 : 1; }
};

// Any shape, strides, storage type, options and cut into tiles; the same for the same number.
Case draw_case(int number);

// Memory for checkpoints and gradients; its size depends on the lanes of the instruction set.
void prepare_gradients(Case& drawn);

}  // namespace scanlab::test
