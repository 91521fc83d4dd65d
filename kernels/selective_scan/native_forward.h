// The forward scan of one tile of channels.
#pragma once

#include "native_tile.h"

namespace scanlab::SCANLAB_ISA {

// (y + D u) silu(z) of a block, to its place or added to what is there; z may be missing.
template <class T>
void finish(int steps, T* y, Rows<T> u, Vec<T> D, Rows<T> z, const Strided& out, int channels, bool add) {
    constexpr int width = lanes<T>;
    const Rows<T> in_place = rows_in_place<T>(out);
    const bool direct = in_place.first && channels == width;
    for_steps(steps, [=](auto count, int t) {
        const auto skip = each(load_steps<T, count.value>(u, t), [=](Vec<T> v) { return v * D; });
        auto value = load_steps<T, count.value>({y, width}, t) + skip;
        if (z.first) {
            const auto gate = load_steps<T, count.value>(z, t);
            value = value * (gate * sigmoid(gate));
        }
        if (!direct) return store_steps(y + t * width, value);
#pragma GCC unroll 8
        for (int i = 0; i < count.value; i++) put<T>(const_cast<T*>(in_place[t + i]), value.of[i], width, add);
    });
    if (!direct) write_block(out, steps, channels, y, add);
}

template <class T>
void forward(const Scan& scan, int d, const Tile& tile, const Chunk& chunk, T* memory) {
    Arena<T> arena{memory};
    TileWalk<T> walk(scan, d, tile, arena);
    const Direction& direction = walk.direction;
    walk.pack_weights();
    const size_t state_bytes = walk.vectors() * walk.numbers * sizeof(T);
    if (chunk.start) memcpy(walk.h, chunk.start, state_bytes);
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += scan.time_block) {
        if (chunk.trace) {
            char* traced = static_cast<char*>(chunk.trace) + begin / scan.time_block * state_bytes;
            if (chunk.again && memcmp(traced, walk.h, state_bytes) == 0) return;
            memcpy(traced, walk.h, state_bytes);
        }
        const int steps = walk.steps(begin);
        const Rows<T> B = walk.rows_of(direction.B, begin, walk.B_rows), C = walk.rows_of(direction.C, begin, walk.C_rows);
        for (int v = 0; v < walk.vectors(); v++) {
            const int64_t channel = walk.channel(v);
            const int channels = walk.channels(v);
            const Rows<T> u = walk.rows_of(direction.u, v, begin, walk.u_rows);
            const Vec<T> bias = vector_of<T>(direction.delta_bias, channel, channels);
            (scan.softplus ? step_sizes<T, true> : step_sizes<T, false>)(
                steps, walk.rows_of(direction.delta, v, begin, walk.delta_rows), bias, walk.step_size);
            Block<T> block = walk.block(v, begin, B, C, u);
            if (scan.checkpoints) {
                T* kept = walk.checkpoint(d, v, begin);
                for (int n = 0; n < walk.state * walk.parts; n++)
                    store_some<T>(kept + n * scan.dim, load(block.h + n * lanes<T>), channels);
            }
            walk.look_ahead(block, v, begin, 1, {&direction.u, &direction.delta, &direction.z, &scan.out});
            (scan.complex ? states<T, 2, false> : states<T, 1, false>)(block, scan.exp);
            finish(steps, walk.y, u, vector_of<T>(direction.D, channel, channels), walk.rows_of(direction.z, v, begin, walk.z_rows),
                   walk.block_of(scan.out, channel, begin), channels, d > 0);
        }
    }
    if (chunk.finish) memcpy(chunk.finish, walk.h, state_bytes);
    if (chunk.end < scan.length) return;
    T* last = static_cast<T*>(direction.last.data) + tile.batch * direction.last.batch * walk.parts;
    for (int v = 0; v < walk.vectors(); v++)
        unpack(walk.h + v * walk.numbers, walk.channel(v), walk.channels(v), walk.state, walk.parts, last, direction.last.channel,
               direction.last.state);
}

}  // namespace scanlab::SCANLAB_ISA
