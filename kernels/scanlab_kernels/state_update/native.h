// One decoding step of the scan, as the kernels see it.
#pragma once

#include "cpu/types.h"

namespace scanlab::mixer {

struct StateUpdate {
    int64_t batch = 0, heads = 1, dim = 0, state = 0, groups = 1;
    bool wide = false, softplus = false, log_A = false;  // log_A: A holds log(-A)
    struct PerBatch {                                    // (batch, heads, dim)
        void* data = nullptr;
        Type type = Type::float32;
        int64_t batch = 0, head = 0, channel = 0;
    } x, dt, z, out, D, dt_bias;  // D and dt_bias have no batch stride
    struct PerState {             // (batch, heads or groups, dim, state)
        void* data = nullptr;
        Type type = Type::float32;
        int64_t batch = 0, head = 0, channel = 0, state = 0;
    } h, A, B, C;  // A has no batch stride, B and C no channel stride
    const int32_t* rows = nullptr;
};

}  // namespace scanlab::mixer
