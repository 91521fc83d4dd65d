// The scan of a feature map in four directions, without torch.
#pragma once

#include "cpu/isa.h"
#include "cpu/types.h"

namespace scanlab {

constexpr int cross_directions = 4;

// Strides count elements.
struct FeatureMap {  // (batch, [direction,] channel, row, column): u, delta, out; channel is state for B and C
    void* data = nullptr;
    int64_t batch = 0, direction = 0, channel = 0, row = 0, column = 0;
};

struct CrossScan {
    int64_t batch = 0, dim = 0, height = 0, width = 0, state = 0;
    int64_t rank = 0;           // channels of delta that dt_weight projects to dim; 0 where delta has dim channels
    Type type = Type::float32;  // of u, delta, B, C and out
    bool softplus = false;
    Exp exp = Exp::exact;
    int time_block = 64;  // steps of one line that are discretised before their states are computed
    FeatureMap u, delta, B, C, out;
    // (direction, dim[, state or rank]), dense; all but A may be missing
    const void *A = nullptr, *D = nullptr, *delta_bias = nullptr, *dt_weight = nullptr;
};

// The kernel of one instruction set and one arithmetic type. A task is one vector of channels of one batch entry.
struct CrossKernel {
    bool (*is_supported)();
    int lanes;
    size_t (*workspace_bytes)(const CrossScan&);
    void (*run)(const CrossScan&, int64_t first_task, int64_t last_task, void* workspace);
};

}  // namespace scanlab
