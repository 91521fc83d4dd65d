// The gradients of one tile of channels in one direction: from the last block to the first, the states of each
// block computed again from the checkpoint before it.
#pragma once

#include "native_tile.h"

namespace scanlab::SCANLAB_ISA {

// What a walk back needs beside what a walk needs.
template <class T>
struct BackMemory {
    T *out_rows, *grad_y, *grad_drive, *grad_delta, *grad_z;  // [steps][lanes]
    T *decays, *states;                                       // [steps][state][parts][lanes]
    T* sums;                                                  // [steps][state][2][lanes]
    T* before;                                                // [state][parts][lanes]
    T *grad_h, *grad_A, *grad_B_fixed, *grad_C_fixed;         // [vectors][state][parts][lanes]
    T *grad_D, *grad_bias;                                    // [vectors][lanes]
    BackMemory(const TileWalk<T>& walk, Arena<T>& arena) {
        for (T** piece : {&out_rows, &grad_y, &grad_drive, &grad_delta, &grad_z}) *piece = arena.take(walk.line);
        for (T** piece : {&decays, &states}) *piece = arena.take(walk.scan.time_block * walk.numbers);
        sums = arena.take(walk.scan.time_block * walk.scan.state * 2 * lanes<T>);
        before = arena.take(walk.numbers);
        for (T** piece : {&grad_h, &grad_A, &grad_B_fixed, &grad_C_fixed}) *piece = arena.take(walk.vectors() * walk.numbers);
        for (T** piece : {&grad_D, &grad_bias}) *piece = arena.take(walk.vectors() * lanes<T>);
    }
};

// Through out = (y + D u) silu(z): the gradients of <C, h> and of z from that of out; returns that of D.
template <class T>
Vec<T> finish_back(int steps, const T* y, Rows<T> u, Vec<T> D, Rows<T> z, Rows<T> grad_out, T* grad_y, T* grad_z) {
    constexpr int width = lanes<T>;
    Vec<T> grad_D = {};
    for_steps(steps, [&](auto count, int t) {
        const auto input = load_steps<T, count.value>(u, t);
        auto gradient = load_steps<T, count.value>(grad_out, t);
        if (z.first) {
            const auto value = load_steps<T, count.value>({y, width}, t) + each(input, [=](Vec<T> v) { return v * D; });
            const auto gate = load_steps<T, count.value>(z, t), open = sigmoid(gate);
            const auto slope = each(gate, open, [](Vec<T> g, Vec<T> s) { return s * (T(1) + g * (T(1) - s)); });
            store_steps(grad_z + t * width, gradient * value * slope);
            gradient = gradient * (gate * open);
        }
        store_steps(grad_y + t * width, gradient);
#pragma GCC unroll 8
        for (int i = 0; i < count.value; i++) grad_D += gradient.of[i] * input.of[i];
    });
    return grad_D;
}

// Through delta' = softplus(delta + bias) and delta' u: the gradients of u and delta, in place of those of drive
// and delta'; returns that of the bias.
template <class T, bool with_softplus>
Vec<T> step_sizes_back(int steps, Rows<T> delta, Vec<T> bias, const T* step_size, Rows<T> u, Vec<T> D, const T* grad_y, T* grad_drive,
                       T* grad_delta) {
    constexpr int width = lanes<T>;
    Vec<T> grad_bias = {};
    for_steps(steps, [&](auto count, int t) {
        const auto drive = load_steps<T, count.value>({grad_drive, width}, t);
        const auto skip = each(load_steps<T, count.value>({grad_y, width}, t), [=](Vec<T> v) { return v * D; });
        auto gradient = load_steps<T, count.value>({grad_delta, width}, t) + drive * load_steps<T, count.value>(u, t);
        if constexpr (with_softplus) {
            const auto raw = each(load_steps<T, count.value>(delta, t), [=](Vec<T> v) { return v + bias; });
            gradient = gradient * each(raw, sigmoid(raw), [](Vec<T> x, Vec<T> s) { return x > T(20) ? broadcast(T(1)) : s; });
        }
        store_steps(grad_delta + t * width, gradient);
        store_steps(grad_drive + t * width, drive * load_steps<T, count.value>({step_size, width}, t) + skip);
#pragma GCC unroll 8
        for (int i = 0; i < count.value; i++) grad_bias += gradient.of[i];
    });
    return grad_bias;
}

// The sums over lanes of a block, to rows of B and of C in the order of the scan.
template <class T, int parts>
void write_sums(int steps, int state, const T* sums, T* B, T* C, int64_t step) {
    for (int t = 0; t < steps; t++)
        for (int n = 0; n < state;) {
            const int count = n + together<parts> <= state ? together<parts> : 1;
            const T* group = sums + (int64_t(t) * state + n) * 2 * lanes<T>;
            for (int i = 0; i < count * parts; i++) {
                if (C) C[t * step + n * parts + i] = group[i];
                if (B) B[t * step + n * parts + i] = group[count * parts + i];
            }
            n += count;
        }
}

template <class T>
void back(const Scan& scan, const Gradient& gradient, const Tile& tile, int d, T* memory) {
    constexpr int width = lanes<T>;
    Arena<T> arena{memory};
    TileWalk<T> walk(scan, d, tile, arena);
    const BackMemory<T> back(walk, arena);
    const Direction& direction = walk.direction;
    const DirectionGradient& to = gradient.direction[d];
    const int parts = walk.parts, numbers = walk.state * parts;
    walk.pack_weights();
    const int64_t whole = walk.vectors() * walk.numbers * sizeof(T);
    for (T* sum : {back.grad_h, back.grad_A, back.grad_B_fixed, back.grad_C_fixed}) memset(sum, 0, whole);
    for (T* sum : {back.grad_D, back.grad_bias}) memset(sum, 0, walk.vectors() * width * sizeof(T));
    if (to.last.data)
        for (int v = 0; v < walk.vectors(); v++)
            pack({static_cast<const T*>(to.last.data) + tile.batch * to.last.batch * parts, to.last.channel, to.last.state},
                 walk.channel(v), walk.channels(v), walk.state, parts, back.grad_h + v * walk.numbers);

    for (int64_t begin = (scan.length - 1) / scan.time_block * scan.time_block; begin >= 0; begin -= scan.time_block) {
        const int steps = walk.steps(begin);
        const Rows<T> B = walk.rows_of(direction.B, begin, walk.B_rows), C = walk.rows_of(direction.C, begin, walk.C_rows);
        for (int v = 0; v < walk.vectors(); v++) {
            const int64_t channel = walk.channel(v);
            const int channels = walk.channels(v);
            const Rows<T> u = walk.rows_of(direction.u, v, begin, walk.u_rows);
            const Rows<T> delta = walk.rows_of(direction.delta, v, begin, walk.delta_rows);
            const Rows<T> z = walk.rows_of(direction.z, v, begin, walk.z_rows);
            const Vec<T> bias = vector_of<T>(direction.delta_bias, channel, channels), D = vector_of<T>(direction.D, channel, channels);
            (scan.softplus ? step_sizes<T, true> : step_sizes<T, false>)(steps, delta, bias, walk.step_size);

            Block<T> block = walk.block(v, begin, B, C, u);
            const T* kept = walk.checkpoint(d, v, begin);
            for (int n = 0; n < numbers; n++) {
                const Vec<T> state = load_some<T>(kept + n * scan.dim, channels);
                store<T>(block.h + n * width, state);
                store<T>(back.before + n * width, state);
            }
            block.decays = back.decays, block.states = back.states;
            walk.look_ahead(block, v, begin, -1, {&direction.u, &direction.delta, &direction.z, &gradient.out, &to.u, &to.delta, &to.z});
            (scan.complex ? states<T, 2, true> : states<T, 1, true>)(block, scan.exp);

            const Rows<T> grad_out = walk.rows_of(gradient.out, v, begin, back.out_rows);
            const Vec<T> grad_D = finish_back(steps, walk.y, u, D, z, grad_out, back.grad_y, back.grad_z);
            store<T>(back.grad_D + v * width, load(back.grad_D + v * width) + grad_D);
            (scan.complex ? states_back<T, 2> : states_back<T, 1>)(block,
                                  {back.grad_y, back.grad_drive, back.grad_delta, back.grad_h + v * walk.numbers, back.grad_A + v * walk.numbers,
                                   back.grad_B_fixed + v * walk.numbers, back.grad_C_fixed + v * walk.numbers, back.sums, v > 0},
                                  back.before);
            const Vec<T> grad_bias = (scan.softplus ? step_sizes_back<T, true> : step_sizes_back<T, false>)(
                steps, delta, bias, walk.step_size, u, D, back.grad_y, back.grad_drive, back.grad_delta);
            store<T>(back.grad_bias + v * width, load(back.grad_bias + v * width) + grad_bias);

            const auto block_of = [&](const Channels& tensor) { return walk.block_of(tensor, channel, begin); };
            write_block(block_of(to.u), steps, channels, back.grad_drive, false);
            write_block(block_of(to.delta), steps, channels, back.grad_delta, false);
            if (z.first) write_block(block_of(to.z), steps, channels, back.grad_z, false);
        }
        const int64_t rows = (tile.index * scan.batch + tile.batch) * scan.groups + tile.group;
        const int64_t first = rows * scan.length + (direction.reverse ? scan.length - 1 - begin : begin);
        const int64_t step = direction.reverse ? -numbers : numbers;
        T* const B_rows = direction.B.constant ? nullptr : static_cast<T*>(to.B) + first * numbers;
        T* const C_rows = direction.C.constant ? nullptr : static_cast<T*>(to.C) + first * numbers;
        (scan.complex ? write_sums<T, 2> : write_sums<T, 1>)(steps, walk.state, back.sums, B_rows, C_rows, step);
    }

    for (int v = 0; v < walk.vectors(); v++) {
        const auto weights = [&](const T* from, void* of, int64_t batch, int64_t channel_step, int64_t state_step) {
            if (of)
                unpack(from + v * walk.numbers, walk.channel(v), walk.channels(v), walk.state, parts, static_cast<T*>(of) + batch * parts,
                                 channel_step, state_step);
        };
        const int64_t each_batch = tile.batch * scan.dim * scan.state;
        weights(back.grad_A, to.A, each_batch, scan.state, 1);
        if (direction.B.constant) weights(back.grad_B_fixed, to.B, each_batch, scan.state, 1);
        if (direction.C.constant) weights(back.grad_C_fixed, to.C, each_batch, scan.state, 1);
        weights(back.grad_h, to.initial.data, tile.batch * to.initial.batch, to.initial.channel, to.initial.state);
        const int64_t at = tile.batch * scan.dim + walk.channel(v);
        if (to.D) store_some<T>(static_cast<T*>(to.D) + at, load(back.grad_D + v * width), walk.channels(v));
        if (to.delta_bias) store_some<T>(static_cast<T*>(to.delta_bias) + at, load(back.grad_bias + v * width), walk.channels(v));
    }
}

// The memory that the largest tile needs, in either direction.
template <class T>
size_t workspace_bytes(const Scan& scan, bool for_gradients) {
    const Tile largest{0, 0, 0, 0, int(scan.channel_tile < scan.dim / scan.groups ? scan.channel_tile : scan.dim / scan.groups)};
    Arena<T> arena{nullptr};
    const TileWalk<T> walk(scan, 0, largest, arena);
    if (for_gradients) BackMemory<T>(walk, arena);
    return arena.taken * sizeof(T);
}

}  // namespace scanlab::SCANLAB_ISA
