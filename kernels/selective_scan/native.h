// The selective scan on the CPU, without torch: what a scan is made of, and how it is run.
//
// Channels lie in the SIMD lanes and the states of a channel in registers, so a step of the recurrence is
// arithmetic between registers; B and C are broadcast from memory. Each tile of channels walks through time
// in blocks: step sizes of a block first, then its states, then its gate.
#pragma once

#include <cstddef>
#include <cstdint>

namespace scanlab {

enum class Type { float32, float64, bfloat16, float16 };
enum class Exp { fast, polynomial, table };
enum class Isa { plain, avx2, avx512 };

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

    Isa isa = Isa::plain;
    Exp exp = Exp::polynomial;
    int threads = 1;
    int time_block = 64;    // steps whose step sizes are computed ahead of the states
    int channel_tile = 16;  // channels that one thread takes at a time
};

// The fastest instruction set that both this build and this machine have.
Isa best_isa();

// Runs `scan`, on its threads, to the end; the outputs overlap no input.
void run(const Scan& scan);

// A piece of a scan that one thread does alone: adjacent channels of one group.
struct Tile {
    int64_t batch, group, channel;
    int channels;
};

// What one instruction set offers for one arithmetic type.
struct Kernels {
    int lanes;
    size_t (*workspace_bytes)(const Scan&);
    void (*forward)(const Scan&, const Tile&, void* workspace);
};

}  // namespace scanlab
