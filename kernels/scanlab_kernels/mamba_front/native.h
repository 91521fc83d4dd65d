// The fused front half of a Mamba block, as the kernels see it.
#pragma once

#include "causal_conv1d/native.h"
#include "linear/native.h"

namespace scanlab::mixer {

// The front computes three things from hidden, (batch, length, model): the product `gate`, (batch, length, dim); u in
// each direction, the convolution of the product `into`, which stays with the thread that makes it; and from u the
// product `select`, (batch, length, selected): the low-rank form of the step sizes, B and C.
//
// A thread works on a group of channels in a piece of time, and the scan after it on channels. `select` sums over all
// channels: each group adds its share, in shares[direction][group][row from first_row on][selected].
struct MambaFront {
    Conv conv;                            // x has no data
    PackedLinear into, gate, select[2];   // into has no out
    int64_t groups = 0, panels_each = 0;  // a group is panels_each panels of channels
    float* shares = nullptr;
    int64_t first_row = 0, share_rows = 0, share_row = 0;
};
struct Piece {
    int64_t batch, first, stop;  // steps [first, stop), max_steps at most
};
inline constexpr int64_t max_steps = 256;

}  // namespace scanlab::mixer
