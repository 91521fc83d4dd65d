// The selective scan on the CPU, without torch: the arguments of a scan, and the functions that run it.
//
// Channels lie in the SIMD lanes and the states of a channel in registers, so a step of the recurrence is arithmetic
// between registers; B and C are broadcast from memory. Each tile of channels goes through time in blocks: delta' of a
// block first, then its states (recurrence.h), then its gate.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/types.h"

namespace scanlab {

// Strides count elements, or pairs of elements where the scan is complex and the tensor is A, a constant B
// or C, or a state. A tensor that is not there has no data.
struct Channels {  // (batch, dim, length): u, delta, z, out
    void* data = nullptr;
    int64_t batch = 0, channel = 0, time = 0;
};
struct Weights {  // (dim,), or (dim, state): A, D, delta_bias
    const void* data = nullptr;
    int64_t channel = 0, state = 0;
};
struct Projection {  // (batch, groups, state, length), or constant (dim, state): B, C
    const void* data = nullptr;
    bool constant = false;
    int64_t batch = 0, group = 0, channel = 0, state = 0, time = 0;
};
struct States {  // (batch, dim, state): the state before the first step and after the last
    void* data = nullptr;
    int64_t batch = 0, channel = 0, state = 0;
};

struct Direction {
    bool reverse = false;
    Channels u, delta, z;
    Weights A, D, delta_bias;
    Projection B, C;
    States initial, last;
};

struct Scan {
    int64_t batch = 0, dim = 0, length = 0, state = 0, groups = 1;
    Type type = Type::float32;
    bool complex = false, softplus = false;
    int directions = 1;
    Direction direction[2];
    Channels out;
    void* checkpoints =
        nullptr;  // (directions, batch, blocks, state, parts, dim): states before each block, for gradients

    Isa isa = Isa::plain;
    Exp exp = Exp::exact;
    int threads = 1;
    int time_block = 64;    // steps that are discretised before their states are computed
    int channel_tile = 16;  // channels that one thread takes at a time
    int time_chunks = 1;    // chunks of time that are scanned at once; only with one direction
};

// The gradients of one direction. Those of u, delta and z are stored as these are, all others in the arithmetic type.
// A gradient without data is not asked for.
struct DirectionGradient {
    Channels u, delta, z;
    States initial, last;                                    // `last` comes in
    void *A = nullptr, *D = nullptr, *delta_bias = nullptr;  // (dim, state, parts), (dim,), (dim,)
    void *B = nullptr, *C = nullptr;  // (batch, groups, length, state, parts), or (dim, state, parts) where constant
};

struct Gradient {
    Channels out;  // comes in
    DirectionGradient direction[2];
    void* terms = nullptr;  // memory of terms_bytes for the sums at the end
};

// The tiles of a group of channels, and the blocks of time.
int64_t tiles(const Scan& scan);
int64_t blocks(const Scan& scan);

// The fastest instruction set that both this build and this machine have.
Isa best_isa();

// Bytes of the partial gradients: of parameters one for each batch entry, of B and C one for each tile.
size_t terms_bytes(const Scan& scan);

// Nanoseconds of the forward scan on one thread, by its sizes and the time of a small scan here, which is taken once.
double work_ns(const Scan& scan);
// How many threads that work is worth: each has ten times as long to do as handing its share over takes.
int64_t threads_worth(const Scan& scan);

// Runs `scan`, on its threads, to the end; the outputs overlap no input.
void run(const Scan& scan);

// The gradients of a scan that left checkpoints; the same bits for any number of threads.
void run_backward(const Scan& scan, const Gradient& gradient);

// A piece of a scan that one thread does alone: adjacent channels of one group.
struct Tile {
    int64_t batch, group, channel, index;  // the index counts the tiles of the group
    int channels;
};

// A run of whole blocks of time that is scanned by itself. States are [vectors][state][parts][lanes] as they lie in
// registers. A first scan records the state before each block in `trace`; a second one, from another start, stops
// where it meets the state that the first one had: from there on they are the same.
struct Chunk {
    int64_t begin, end;
    const void* start_state = nullptr;  // none for the state before the scan
    void* end_state = nullptr;          // the state after the last step, where asked for
    void* trace = nullptr;              // one state for each block of the scan
    bool again = false;
};

// The kernels of one instruction set for one arithmetic type.
struct Kernels {
    bool (*is_supported)();
    int lanes;
    size_t (*workspace_bytes)(const Scan&);
    void (*forward)(const Scan&, const Tile&, const Chunk&, void* workspace);
    size_t (*workspace_backward_bytes)(const Scan&);
    void (*backward)(const Scan&, const Gradient&, const Tile&, int direction, void* workspace);
};

}  // namespace scanlab
