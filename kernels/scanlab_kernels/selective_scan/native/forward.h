// The forward scan of one tile of channels.
#pragma once

#include "selective_scan/native/tile.h"

namespace scanlab::SCANLAB_TARGET {

// The rows of one vector of channels in one block; S is their storage type, or T where they are copies.
template <class S>
struct VectorRows {
    Rows<S> u, delta, z;  // z may be missing
    S* out;
    int64_t out_step;
    bool add;  // to the output, instead of overwriting it
};

// (y + D u) silu(z) of a block; without D nothing is added, for 0 times an infinite u is not 0.
template <class T, class S>
void epilogue(int steps, const T* y, Rows<T> u, bool has_D, Vec<T> D, const VectorRows<S>& rows) {
    for_steps(steps, [=](auto count, int t) SCANLAB_ALWAYS_INLINE {
        auto value = load_steps<T, count.value>(Rows<T>{y, lanes<T>}, t);
        if (has_D) value = value + each(load_steps<T, count.value>(u, t), [=](Vec<T> v) { return v * D; });
        if (rows.z.first) {
            const auto gate = load_steps<T, count.value>(rows.z, t);
            value = value * (gate * sigmoid(gate));
        }
#pragma GCC unroll 8
        for (int i = 0; i < count.value; i++)
            put<T>(rows.out + (t + i) * rows.out_step, value.of[i], lanes<T>, rows.add);
    });
}

template <class T>
struct TileForward {
    const Scan& scan;
    const int d;
    TileContext<T> context;
    const Direction& direction = context.direction;

    // One vector of channels over one block.
    template <class S>
    void vector(int v, int64_t begin, Rows<T> B, Rows<T> C, const VectorRows<S>& rows) {
        const int64_t channel = context.channel(v);
        const int channels = context.channels(v), steps = context.steps(begin);
        const Vec<T> bias = vector_of<T>(direction.delta_bias, channel, channels);
        const Rows<T> u =
            (scan.softplus ? discretize_delta<T, true, DeltaOutputs::value, S>
                           : discretize_delta<T, false, DeltaOutputs::value, S>)(steps, rows.delta, bias,
                                                                                 context.step_size, nullptr, rows.u,
                                                                                 context.u_rows);
        Block<T> block = context.block(v, begin, B, C, u);
        if (scan.checkpoints) {
            T* kept = context.checkpoint(d, v, begin);
            for (int n = 0; n < context.state * context.parts; n++)
                store_some<T>(kept + n * scan.dim, load(block.h + n * lanes<T>), channels);
        }
        context.prefetch_next(block, d, v, begin, 1, {&direction.u, &direction.delta, &direction.z, &scan.out});
        (scan.complex ? run_recurrence<T, 2, false> : run_recurrence<T, 1, false>)(block, scan.exp);
        epilogue(steps, context.y, u, direction.D.data, vector_of<T>(direction.D, channel, channels), rows);
    }

    // All vectors of the tile, one after the other; without copies where whole vectors lie in all tensors.
    void block(int64_t begin) {
        const Rows<T> B = context.rows_of(direction.B, begin, context.B_rows),
                      C = context.rows_of(direction.C, begin, context.C_rows);
        bool adjacent = scan.out.channel == 1;
        for (const Channels* tensor : {&direction.u, &direction.delta, &direction.z})
            adjacent &= !tensor->data || tensor->channel == 1;
        for (int v = 0; v < context.vectors(); v++) {
            const Strided out = context.block_of(scan.out, context.channel(v), begin);
            if (adjacent && context.channels(v) == lanes<T>) {
                typed<T>(out, [&]<class S>(S* to) {
                    const auto rows = [&](const Channels& tensor) {
                        return context.template stored<S>(tensor, v, begin);
                    };
                    vector<S>(v, begin, B, C,
                              {rows(direction.u), rows(direction.delta), rows(direction.z), to, out.time, d > 0});
                });
            } else {
                const auto rows = [&](const Channels& tensor, T* buffer) {
                    return context.rows_of(tensor, v, begin, buffer);
                };
                vector<T>(v, begin, B, C,
                          {rows(direction.u, context.u_rows), rows(direction.delta, context.delta_rows),
                           rows(direction.z, context.z_rows), context.y, lanes<T>, false});
                write_block(out, context.steps(begin), context.channels(v), context.y, d > 0);
            }
        }
    }
};

template <class T>
void forward(const Scan& scan, int d, const Tile& tile, const Chunk& chunk, T* memory) {
    Arena<T> arena{memory};
    TileForward<T> forward{scan, d, {scan, d, tile, arena}};
    TileContext<T>& context = forward.context;
    context.pack_weights();
    const size_t state_bytes = context.vectors() * context.numbers * sizeof(T);
    if (chunk.start_state) memcpy(context.h, chunk.start_state, state_bytes);
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += scan.time_block) {
        if (chunk.trace) {
            char* traced = static_cast<char*>(chunk.trace) + begin / scan.time_block * state_bytes;
            if (chunk.again && memcmp(traced, context.h, state_bytes) == 0) return;
            memcpy(traced, context.h, state_bytes);
        }
        forward.block(begin);
    }
    if (chunk.end_state) memcpy(chunk.end_state, context.h, state_bytes);
    if (chunk.end < scan.length) return;
    const States& to = context.direction.last;
    T* last = static_cast<T*>(to.data) + tile.batch * to.batch * context.parts;
    for (int v = 0; v < context.vectors(); v++)
        unpack(context.h + v * context.numbers, context.channel(v), context.channels(v), context.state, context.parts,
               last, to.channel, to.state);
}

}  // namespace scanlab::SCANLAB_TARGET
