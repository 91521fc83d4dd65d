// The backward pass of one tile of channels in one direction: from the last block to the first, the states of each
// block recomputed from the checkpoint before it.
#pragma once

#include "selective_scan/native/tile.h"

namespace scanlab::SCANLAB_TARGET {

// Where the rows of a block of results go: to their place where whole vectors lie there, otherwise by way of a buffer.
template <class T>
struct Target {
    Strided block;
    int channels;
    T *buffer, *first = buffer;
    int64_t step = lanes<T>;
    Target(const Strided& block, int channels, T* buffer) : block(block), channels(channels), buffer(buffer) {
        const Rows<T> in_place = rows_in_place<T>(block);
        if (in_place.first && channels == lanes<T>) first = const_cast<T*>(in_place.first), step = in_place.step;
    }
    template <int count>
    SCANLAB_INLINE void put_steps(int t, const Pack<T, count>& steps) const {
#pragma GCC unroll 8
        for (int i = 0; i < count; i++) store<T>(first + (t + i) * step, steps.of[i]);
    }
    void flush(int steps) const {
        if (first == buffer) write_block(block, steps, channels, buffer, false);
    }
};

// Vectors of channels that share one backward pass through a block.
inline constexpr int vector_unroll = SCANLAB_REGISTERS / 16;

// Memory of one vector of channels for the backward pass of one block.
template <class T>
struct VectorBackward {
    T *u_rows, *step_size, *slope, *grad_y, *grad_delta_u,
        *grad_delta;      // [steps][lanes]; the slope is that of softplus
    T *decays, *history;  // [steps][state][parts][lanes]
    T* before;            // [state][parts][lanes]
    Rows<T> u;
    Vec<T> D;
};

// Memory that the backward pass of a tile needs beside that of the forward pass.
template <class T>
struct BackwardMemory {
    VectorBackward<T> vector[vector_unroll];
    T *out_rows, *grad_z;                              // [steps][lanes]
    T* sums;                                           // [steps], each as recurrence_steps_backward leaves them
    T *grad_h, *grad_A, *grad_B_fixed, *grad_C_fixed;  // [vectors][state][parts][lanes]
    T *grad_D, *grad_bias;                             // [vectors][lanes]
    BackwardMemory(const TileContext<T>& context, Arena<T>& arena) {
        for (auto& one : vector) {
            for (T** piece : {&one.u_rows, &one.step_size, &one.slope, &one.grad_y, &one.grad_delta_u, &one.grad_delta})
                *piece = arena.take(context.line);
            for (T** piece : {&one.decays, &one.history})
                *piece = arena.take(context.scan.time_block * context.numbers);
            one.before = arena.take(context.numbers);
        }
        for (T** piece : {&out_rows, &grad_z}) *piece = arena.take(context.line);
        sums = arena.take(context.scan.time_block *
                          (context.parts == 2 ? sums_step<T, 2> : sums_step<T, 1>)(context.state));
        for (T** piece : {&grad_h, &grad_A, &grad_B_fixed, &grad_C_fixed})
            *piece = arena.take(context.vectors() * context.numbers);
        for (T** piece : {&grad_D, &grad_bias}) *piece = arena.take(context.vectors() * lanes<T>);
    }
};

// Through out = (y + D u) silu(z): the gradients of <C, h> and of z from that of out; returns that of D.
template <class T>
Vec<T> epilogue_backward(int steps, const T* y, Rows<T> u, Vec<T> D, Rows<T> z, Rows<T> grad_out, T* grad_y,
                         Target<T> grad_z) {
    constexpr int width = lanes<T>;
    Vec<T> grad_D = {};
    for_steps(steps, [&](auto count, int t) SCANLAB_ALWAYS_INLINE {
        const auto input = load_steps<T, count.value>(u, t);
        auto gradient = load_steps<T, count.value>(grad_out, t);
        if (z.first) {
            const auto value = load_steps<T, count.value>({y, width}, t) + each(input, [=](Vec<T> v) { return v * D; });
            const auto gate = load_steps<T, count.value>(z, t), open = sigmoid(gate);
            const auto slope = each(gate, open, [](Vec<T> g, Vec<T> s) { return s * (T(1) + g * (T(1) - s)); });
            grad_z.put_steps(t, gradient * value * slope);
            gradient = gradient * (gate * open);
        }
        store_steps(grad_y + t * width, gradient);
#pragma GCC unroll 8
        for (int i = 0; i < count.value; i++) grad_D += gradient.of[i] * input.of[i];
    });
    return grad_D;
}

// Through delta' = softplus(delta + bias) and delta' u, from the gradients of delta' u and delta' to those of u and
// delta; returns that of the bias.
template <class T, bool with_softplus>
Vec<T> discretize_delta_backward(int steps, const VectorBackward<T>& of, Target<T> grad_u, Target<T> grad_delta) {
    constexpr int width = lanes<T>;
    Vec<T> grad_bias = {};
    for_steps(steps, [&](auto count, int t) SCANLAB_ALWAYS_INLINE {
        const auto grad_delta_u = load_steps<T, count.value>({of.grad_delta_u, width}, t);
        const auto skip = each(load_steps<T, count.value>({of.grad_y, width}, t), [&](Vec<T> v) { return v * of.D; });
        auto gradient = load_steps<T, count.value>({of.grad_delta, width}, t) * (1 / log2_e<T>)+grad_delta_u *
                        load_steps<T, count.value>(of.u, t);
        if constexpr (with_softplus) gradient = gradient * load_steps<T, count.value>({of.slope, width}, t);
        grad_delta.put_steps(t, gradient);
        grad_u.put_steps(t, grad_delta_u * load_steps<T, count.value>({of.step_size, width}, t) + skip);
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
            const bool group = n + state_unroll<parts> <= state;
            const int count = group ? state_unroll<parts> : 1;
            for (int i = 0; i < count * parts; i++) {
                if (C) C[t * step + n * parts + i] = sums[i];
                if (B) B[t * step + n * parts + i] = sums[count * parts + i];
            }
            n += count;
            sums += group ? sums_size<T, parts, state_unroll<parts>> : sums_size<T, parts, 1>;
        }
}

// The backward pass of one tile.
template <class T>
struct TileBackward {
    static constexpr int width = lanes<T>;
    const Scan& scan;
    const Gradient& gradient;
    const Tile& tile;
    const int d;
    TileContext<T> context;
    BackwardMemory<T> memory;
    const Direction& direction = context.direction;
    const DirectionGradient& to = gradient.direction[d];

    TileBackward(const Scan& scan, const Gradient& gradient, const Tile& tile, int d, Arena<T>&& arena)
        : scan(scan), gradient(gradient), tile(tile), d(d), context(scan, d, tile, arena), memory(context, arena) {
        context.pack_weights();
        for (T* sum : {memory.grad_h, memory.grad_A, memory.grad_B_fixed, memory.grad_C_fixed})
            memset(sum, 0, context.vectors() * context.numbers * sizeof(T));
        for (T* sum : {memory.grad_D, memory.grad_bias}) memset(sum, 0, context.vectors() * width * sizeof(T));
        if (!to.last.data) return;
        const Weights last{static_cast<const T*>(to.last.data) + tile.batch * to.last.batch * context.parts,
                           to.last.channel, to.last.state};
        for (int v = 0; v < context.vectors(); v++)
            pack(last, context.channel(v), context.channels(v), context.state, context.parts,
                 memory.grad_h + v * context.numbers);
    }

    Target<T> target(const Channels& tensor, int v, int64_t begin, T* buffer) const {
        return {context.block_of(tensor, context.channel(v), begin), context.channels(v), buffer};
    }
    static void add(T* sum, Vec<T> value) { store<T>(sum, load(sum) + value); }

    // The states of a block again from its checkpoint, and through its gate the gradients of z and of <C, h>.
    Block<T> states_again(VectorBackward<T>& one, int v, int64_t begin, Rows<T> B, Rows<T> C) {
        const int64_t channel = context.channel(v);
        const int channels = context.channels(v), steps = context.steps(begin);
        one.u = context.rows_of(direction.u, v, begin, one.u_rows),
        one.D = vector_of<T>(direction.D, channel, channels);
        (scan.softplus
             ? discretize_delta<T, true, DeltaOutputs::value_and_slope, T>
             : discretize_delta<T, false, DeltaOutputs::value_and_slope, T>)(steps,
                                                                             context.rows_of(direction.delta, v, begin,
                                                                                             context.delta_rows),
                                                                             vector_of<T>(direction.delta_bias, channel,
                                                                                          channels),
                                                                             one.step_size, one.slope, one.u, nullptr);

        Block<T> block = context.block(v, begin, B, C, one.u);
        const T* kept = context.checkpoint(d, v, begin);
        for (int n = 0; n < context.state * context.parts; n++) {
            const Vec<T> state = load_some<T>(kept + n * scan.dim, channels);
            store<T>(block.h + n * width, state);
            store<T>(one.before + n * width, state);
        }
        block.delta = one.step_size, block.decays = one.decays, block.history = one.history;
        context.prefetch_next(block, d, v, begin, -1,
                              {&direction.u, &direction.delta, &direction.z, &gradient.out, &to.u, &to.delta, &to.z});
        (scan.complex ? run_recurrence<T, 2, true> : run_recurrence<T, 1, true>)(block, scan.exp);

        const Rows<T> z = context.rows_of(direction.z, v, begin, context.z_rows),
                      grad_out = context.rows_of(gradient.out, v, begin, memory.out_rows);
        const Target<T> grad_z = target(to.z, v, begin, memory.grad_z);
        add(memory.grad_D + v * width,
            epilogue_backward(steps, context.y, one.u, one.D, z, grad_out, one.grad_y, grad_z));
        if (z.first) grad_z.flush(steps);
        return block;
    }

    // From the gradients of delta' u and delta' to those of u and delta.
    void inputs_backward(const VectorBackward<T>& one, int v, int64_t begin) {
        const Target<T> grad_u = target(to.u, v, begin, one.grad_delta_u),
                        grad_delta = target(to.delta, v, begin, one.grad_delta);
        const int steps = context.steps(begin);
        add(memory.grad_bias + v * width,
            (scan.softplus ? discretize_delta_backward<T, true>
                           : discretize_delta_backward<T, false>)(steps, one, grad_u, grad_delta));
        grad_u.flush(steps), grad_delta.flush(steps);
    }

    template <int vectors>
    void vectors_backward(int first, int64_t begin, Rows<T> B, Rows<T> C) {
        Block<T> blocks[vectors];
        BlockGradient<T> gradients[vectors];
        for (int i = 0; i < vectors; i++) {
            VectorBackward<T>& one = memory.vector[i];
            blocks[i] = states_again(one, first + i, begin, B, C);
            const int64_t at = (first + i) * context.numbers;
            gradients[i] = {one.grad_y,
                            one.grad_delta_u,
                            one.grad_delta,
                            memory.grad_h + at,
                            memory.grad_A + at,
                            memory.grad_B_fixed + at,
                            memory.grad_C_fixed + at,
                            one.before,
                            context.channels(first + i)};
        }
        (scan.complex ? run_recurrence_backward<T, 2, vectors>
                      : run_recurrence_backward<T, 1, vectors>)(blocks, gradients, memory.sums, first > 0);
        for (int i = 0; i < vectors; i++) inputs_backward(memory.vector[i], first + i, begin);
    }

    void block_backward(int64_t begin) {
        const Rows<T> B = context.rows_of(direction.B, begin, context.B_rows),
                      C = context.rows_of(direction.C, begin, context.C_rows);
        int v = 0;
        for (; (v + vector_unroll) * width <= tile.channels; v += vector_unroll)
            vectors_backward<vector_unroll>(v, begin, B, C);
        for (; v < context.vectors(); v++) vectors_backward<1>(v, begin, B, C);
        const int64_t rows = (tile.index * scan.batch + tile.batch) * scan.groups + tile.group,
                      numbers = context.state * context.parts;
        const int64_t first = rows * scan.length + (direction.reverse ? scan.length - 1 - begin : begin);
        T* const B_rows = direction.B.constant ? nullptr : static_cast<T*>(to.B) + first * numbers;
        T* const C_rows = direction.C.constant ? nullptr : static_cast<T*>(to.C) + first * numbers;
        (scan.complex ? write_sums<T, 2> : write_sums<T, 1>)(context.steps(begin), context.state, memory.sums, B_rows,
                                                             C_rows, direction.reverse ? -numbers : numbers);
    }

    // Writes the gradients that were summed over time.
    void write_parameters() const {
        for (int v = 0; v < context.vectors(); v++) {
            const auto weights = [&](const T* from, void* of, int64_t batch, int64_t channel_step, int64_t state_step) {
                if (of)
                    unpack(from + v * context.numbers, context.channel(v), context.channels(v), context.state,
                           context.parts, static_cast<T*>(of) + batch * context.parts, channel_step, state_step);
            };
            const int64_t each_batch = tile.batch * scan.dim * scan.state;
            weights(memory.grad_A, to.A, each_batch, scan.state, 1);
            if (direction.B.constant) weights(memory.grad_B_fixed, to.B, each_batch, scan.state, 1);
            if (direction.C.constant) weights(memory.grad_C_fixed, to.C, each_batch, scan.state, 1);
            weights(memory.grad_h, to.initial.data, tile.batch * to.initial.batch, to.initial.channel,
                    to.initial.state);
            const int64_t at = tile.batch * scan.dim + context.channel(v);
            if (to.D) store_some<T>(static_cast<T*>(to.D) + at, load(memory.grad_D + v * width), context.channels(v));
            if (to.delta_bias)
                store_some<T>(static_cast<T*>(to.delta_bias) + at, load(memory.grad_bias + v * width),
                              context.channels(v));
        }
    }
};

template <class T>
void backward(const Scan& scan, const Gradient& gradient, const Tile& tile, int d, T* memory) {
    TileBackward<T> context(scan, gradient, tile, d, Arena<T>{memory});
    for (int64_t begin = (scan.length - 1) / scan.time_block * scan.time_block; begin >= 0; begin -= scan.time_block)
        context.block_backward(begin);
    context.write_parameters();
}

// The memory that the largest tile needs, in either direction.
template <class T>
size_t workspace_bytes(const Scan& scan, bool for_gradients) {
    const Tile largest{0, 0, 0, 0,
                       int(scan.channel_tile < scan.dim / scan.groups ? scan.channel_tile : scan.dim / scan.groups)};
    Arena<T> arena{nullptr};
    const TileContext<T> context(scan, 0, largest, arena);
    if (for_gradients) BackwardMemory<T>(context, arena);
    return arena.taken * sizeof(T);
}

}  // namespace scanlab::SCANLAB_TARGET
