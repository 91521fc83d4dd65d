// A depthwise causal convolution, and one step of it from a stored state, as the kernels see them.
#pragma once

#include "cpu/types.h"

namespace scanlab::mixer {

inline constexpr int max_width = 16;

// out[t] = activation(bias + sum over k of weight[k] x[t - (width - 1) + k]), or in reverse x[t + (width - 1) - k].
struct ConvDirection {
    bool reverse = false;
    const void* weight = nullptr;  // (dim, width), dense, of the arithmetic type
    const void* bias = nullptr;    // (dim,), likewise
    Matrix out;                    // (batch, dim, length); in a backward pass its gradient
    void* partials = nullptr;  // backward: (batch, chunks, dim, width + 1) shares of the weight's and bias's gradient
};
struct Conv {
    int64_t batch = 0, dim = 0, length = 0;
    int width = 0;
    bool wide = false, silu = false;  // wide: float64 arithmetic
    Matrix x, initial;                // (batch, dim, length), and (batch, dim, width - 1) of the input before x
    const int32_t* ids = nullptr;     // (batch, length): the sequence each step belongs to; negative is padding
    int directions = 1;
    ConvDirection direction[2];
    Matrix grad_x, grad_initial;
};

struct ConvUpdate {
    int64_t batch = 0, dim = 0, length = 0, slots = 0;
    int width = 0;
    bool wide = false, silu = false;
    Matrix x, state, out;  // (batch, dim, length), (rows, dim, slots), (batch, dim, length)
    const void* weight = nullptr;
    const void* bias = nullptr;
    const int32_t* positions = nullptr;  // (batch,): where in its circular buffer x begins; none: the state shifts
    const int32_t* rows = nullptr;       // (batch,): the row of the state; negative skips
};

}  // namespace scanlab::mixer
