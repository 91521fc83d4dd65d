// The fused front half of a Mamba block, as the kernels see it.
#pragma once

#include "causal_conv1d/native.h"
#include "linear/native.h"

namespace scanlab::mixer {

// Of hidden, (batch, length, model), the gate, (batch, length, dim), and the convolution of another product, which
// stays with the thread that makes it; of u, which that gives in each direction, what is selected, (batch, length,
// selected).
//
// A thread works on a group of channels in a piece of time, and the scan after it on channels. What is selected sums
// over all of them: each group gives its share, in shares[direction][group][row from first_row on][selected].
struct MambaFront {
    Conv conv;                            // x has no data
    PackedLinear into, gate, select[2];   // into has no out
    int64_t groups = 0, panels_each = 0;  // a group is panels_each panels of channels
    float* shares = nullptr;
    int64_t first_row = 0, share_rows = 0, share_row = 0;
};
struct Piece {
    int64_t batch, first, stop;  // steps [first, stop), most_steps at most
};
inline constexpr int64_t max_steps = 256;

}  // namespace scanlab::mixer
