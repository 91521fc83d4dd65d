// State-space duality on the CPU, without torch: the arguments of a call, and the functions that run it.
//
// A task is some heads of one group and one sequence. It goes through time chunk by chunk: B and C of a chunk and their
// products are the same for all its heads; each head has a state in the cache. forward.h has the mathematics.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/types.h"

namespace scanlab::ssd {

// Strides count elements; a tensor that is not there has no data. All are float32 but those with a type.
struct Steps {  // (batch, length, heads, head_dim): x, z, out; or (batch, length, groups, state): B, C
    void* data = nullptr;
    Type type = Type::float32;
    int64_t batch = 0, time = 0, head = 0, channel = 0;
};
struct PerHead {  // (batch, length, heads): dt; (heads,): A, dt_bias; (heads, head_dim): D
    float* data = nullptr;
    int64_t batch = 0, time = 0, head = 0, channel = 0;
};
struct Sequences {  // (batch, length): seq_idx
    const int32_t* data = nullptr;
    int64_t batch = 0, time = 0;
};
struct States {  // (batch, heads, head_dim, state)
    float* data = nullptr;
    int64_t batch = 0, head = 0, channel = 0, state = 0;
};

struct Call {
    int64_t batch = 0, length = 0, heads = 0, head_dim = 0, state = 0, groups = 1;
    Steps x, B, C, z, out;
    Steps ungated;  // like out, before the gate; kept for gradients
    PerHead dt, A, D, dt_bias;
    Sequences seq_idx;
    States initial, final;
    float* chunk_states = nullptr;  // (batch, chunks, heads, state, head_dim): before each chunk, kept for gradients
    bool softplus = false;
    float lowest_dt = 0, highest_dt = 0;
    int chunk = 64;      // steps whose outputs are products of matrices
    int task_heads = 8;  // heads of a task
};

// Adjacent heads of one group.
struct Task {
    int64_t batch, group, head, heads;
};

inline int64_t chunks(const Call& call) { return (call.length + call.chunk - 1) / call.chunk; }
inline int64_t tasks_of_group(const Call& call) {
    return (call.heads / call.groups + call.task_heads - 1) / call.task_heads;
}
inline int64_t tasks(const Call& call) { return call.batch * call.groups * tasks_of_group(call); }
inline Task task_at(const Call& call, int64_t index) {
    const int64_t own = call.heads / call.groups, per_group = tasks_of_group(call);
    const int64_t group = index / per_group % call.groups, first = index % per_group * call.task_heads;
    const int64_t heads = own - first < call.task_heads ? own - first : call.task_heads;
    return {index / per_group / call.groups, group, group * own + first, heads};
}

// Gradients. Those of x and z are stored as x is; sums over batch or over tasks have a part for each.
struct Gradient {
    Steps out, x, z;                                       // `out` comes in
    States initial, final;                                 // `final` comes in
    float* dt = nullptr;                                   // (batch, length, heads)
    float *A = nullptr, *dt_bias = nullptr, *D = nullptr;  // (batch, heads), the same, (batch, heads, head_dim)
    float *B = nullptr, *C = nullptr;                      // (tasks of a group, batch, length, groups, state)
};

// The kernels of one instruction set. The backward pass wants `chunk_states`, and with z `ungated`.
struct Kernels {
    bool (*is_supported)();
    size_t (*forward_bytes)(const Call&);
    void (*forward)(const Call&, const Task&, void* workspace);
    size_t (*backward_bytes)(const Call&);
    void (*backward)(const Call&, const Gradient&, const Task&, void* workspace);
};

#define SCANLAB_DECLARE_KERNELS(isa) extern const Kernels kernels_##isa;
SCANLAB_INSTRUCTION_SETS(SCANLAB_DECLARE_KERNELS)
#undef SCANLAB_DECLARE_KERNELS

}  // namespace scanlab::ssd
