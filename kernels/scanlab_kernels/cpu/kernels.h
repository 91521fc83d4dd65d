// The table of kernels that one instruction set offers, for all ops but the scans, which have tables of their own.
//
// Every op works on small dense tiles of its arithmetic type: tensors of any storage type and any strides are
// converted at the edge of a tile, so the arithmetic is compiled for float and for double only. Work is cut into tasks
// whose bounds do not depend on the number of threads, so neither do the bits of a result.
#pragma once

#include "add_norm/native.h"
#include "cpu/isa.h"
#include "mamba_front/native.h"
#include "state_update/native.h"

namespace scanlab::mixer {

// The products of one storage type, alone and within the fused front of a block.
struct Products {
    bool (*is_supported)();
    void (*packed_linear)(const PackedLinear&, int64_t row, int64_t rows, int64_t first_panel, int64_t last_panel);
    void (*convolve_group)(const MambaFront&, const Piece&, int64_t group);
    void (*add_shares)(const MambaFront&, int64_t row, int64_t rows);
    int64_t front_groups;  // groups of channels that the front is cut into, at most
};

// The kernels of one instruction set. A task is one piece of work that a thread does alone.
struct Kernels {
    const char* name;
    bool (*is_supported)();
    int64_t (*conv_chunks)(const Conv&);  // pieces along time
    int64_t (*conv_tasks)(const Conv&);
    void (*conv)(const Conv&, int64_t begin, int64_t end);
    void (*conv_backward)(const Conv&, int64_t begin, int64_t end);
    int64_t (*conv_update_tasks)(const ConvUpdate&);
    size_t (*conv_update_workspace_bytes)(const ConvUpdate&);
    void (*conv_update)(const ConvUpdate&, int64_t begin, int64_t end, void* workspace);
    size_t (*norm_workspace_bytes)(const Norm&);
    void (*norm)(const Norm&, int64_t begin, int64_t end, void* workspace);  // a task is norm_rows rows
    void (*norm_backward)(const Norm&, int64_t begin, int64_t end, void* workspace);
    int64_t (*state_update_tasks)(const StateUpdate&);
    size_t (*state_update_workspace_bytes)(const StateUpdate&);
    void (*state_update)(const StateUpdate&, int64_t begin, int64_t end, void* workspace);
    int64_t (*gemv_tasks)(const Gemv&);
    void (*gemv)(const Gemv&, int64_t begin, int64_t end);
    Products float32;
    bool multiplies_bfloat16;  // goes with the units of linear/bfloat16.cpp, where the machine has one
};

}  // namespace scanlab::mixer
