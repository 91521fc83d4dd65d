// The forward scan of one tile of channels.
#pragma once

#include "selective_scan/native/tile.h"

namespace scanlab::SCANLAB_ISA {

// The rows of one vector of channels in one block; S is what they are stored as, or T where they are copies.
template <class S>
struct VectorRows {
    Rows<S> u, delta, z;  // z may be missing
    S* out;
    int64_t out_step;
    bool add;  // to what is there
};

// (y + D u) silu(z) of a block.
template <class T, class S>
void finish(int steps, const T* y, Rows<T> u, Vec<T> D, const VectorRows<S>& rows) {
    for_steps(steps, [=](auto count, int t) SCANLAB_ALWAYS_INLINE {
        const auto skip = each(load_steps<T, count.value>(u, t), [=](Vec<T> v) { return v * D; });
        auto value = load_steps<T, count.value>(Rows<T>{y, lanes<T>}, t) + skip;
        if (rows.z.first) {
            const auto gate = load_steps<T, count.value>(rows.z, t);
            value = value * (gate * sigmoid(gate));
        }
#pragma GCC unroll 8
        for (int i = 0; i < count.value; i++) put<T>(rows.out + (t + i) * rows.out_step, value.of[i], lanes<T>, rows.add);
    });
}

template <class T>
struct WalkForward {
    const Scan& scan;
    const int d;
    TileWalk<T> walk;
    const Direction& direction = walk.direction;

    // One vector of channels over one block.
    template <class S>
    void vector(int v, int64_t begin, Rows<T> B, Rows<T> C, const VectorRows<S>& rows) {
        const int64_t channel = walk.channel(v);
        const int channels = walk.channels(v), steps = walk.steps(begin);
        const Vec<T> bias = vector_of<T>(direction.delta_bias, channel, channels);
        const Rows<T> u = (scan.softplus ? step_sizes<T, true, StepSize::value, S> : step_sizes<T, false, StepSize::value, S>)(
            steps, rows.delta, bias, walk.step_size, nullptr, rows.u, walk.u_rows);
        Block<T> block = walk.block(v, begin, B, C, u);
        if (scan.checkpoints) {
            T* kept = walk.checkpoint(d, v, begin);
            for (int n = 0; n < walk.state * walk.parts; n++)
                store_some<T>(kept + n * scan.dim, load(block.h + n * lanes<T>), channels);
        }
        walk.look_ahead(block, d, v, begin, 1, {&direction.u, &direction.delta, &direction.z, &scan.out});
        (scan.complex ? states<T, 2, false> : states<T, 1, false>)(block, scan.exp);
        finish(steps, walk.y, u, vector_of<T>(direction.D, channel, channels), rows);
    }

    // All vectors of the tile, one after the other; without copies where whole vectors lie in all tensors.
    void block(int64_t begin) {
        const Rows<T> B = walk.rows_of(direction.B, begin, walk.B_rows), C = walk.rows_of(direction.C, begin, walk.C_rows);
        bool adjacent = scan.out.channel == 1;
        for (const Channels* tensor : {&direction.u, &direction.delta, &direction.z}) adjacent &= !tensor->data || tensor->channel == 1;
        for (int v = 0; v < walk.vectors(); v++) {
            const Strided out = walk.block_of(scan.out, walk.channel(v), begin);
            if (adjacent && walk.channels(v) == lanes<T>) {
                typed<T>(out, [&]<class S>(S* to) {
                    const auto rows = [&](const Channels& tensor) { return walk.template stored<S>(tensor, v, begin); };
                    vector<S>(v, begin, B, C, {rows(direction.u), rows(direction.delta), rows(direction.z), to, out.time, d > 0});
                });
            } else {
                const auto rows = [&](const Channels& tensor, T* buffer) { return walk.rows_of(tensor, v, begin, buffer); };
                vector<T>(v, begin, B, C, {rows(direction.u, walk.u_rows), rows(direction.delta, walk.delta_rows),
                                           rows(direction.z, walk.z_rows), walk.y, lanes<T>, false});
                write_block(out, walk.steps(begin), walk.channels(v), walk.y, d > 0);
            }
        }
    }
};

template <class T>
void forward(const Scan& scan, int d, const Tile& tile, const Chunk& chunk, T* memory) {
    Arena<T> arena{memory};
    WalkForward<T> forward{scan, d, {scan, d, tile, arena}};
    TileWalk<T>& walk = forward.walk;
    walk.pack_weights();
    const size_t state_bytes = walk.vectors() * walk.numbers * sizeof(T);
    if (chunk.start) memcpy(walk.h, chunk.start, state_bytes);
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += scan.time_block) {
        if (chunk.trace) {
            char* traced = static_cast<char*>(chunk.trace) + begin / scan.time_block * state_bytes;
            if (chunk.again && memcmp(traced, walk.h, state_bytes) == 0) return;
            memcpy(traced, walk.h, state_bytes);
        }
        forward.block(begin);
    }
    if (chunk.finish) memcpy(chunk.finish, walk.h, state_bytes);
    if (chunk.end < scan.length) return;
    const States& to = walk.direction.last;
    T* last = static_cast<T*>(to.data) + tile.batch * to.batch * walk.parts;
    for (int v = 0; v < walk.vectors(); v++)
        unpack(walk.h + v * walk.numbers, walk.channel(v), walk.channels(v), walk.state, walk.parts, last, to.channel, to.state);
}

}  // namespace scanlab::SCANLAB_ISA
