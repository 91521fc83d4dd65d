// The forward scan of one tile of channels.
#pragma once

#include "native_rows.h"

namespace scanlab::SCANLAB_ISA {

// One vector of channels over one block of time. `parts` is 2 where numbers are complex: real, imaginary.
template <class T>
struct Block {
    int steps;
    const T *delta, *drive;  // [steps][lanes]: delta' and delta' u
    T* y;                    // [steps][lanes]: D u, to which <C, h> is added
    const T* A;              // [state][parts][lanes]; the real part times log2(e)
    T* h;                    // [state][parts][lanes]
    Rows<T> B, C;            // [steps][state][parts], or constant: [state][parts][lanes], step 0
};

// B or C of one state: broadcast where it varies over time, a vector of channels where it is constant.
template <bool constant, class T>
SCANLAB_INLINE Vec<T> coefficient(const T* row, int index) {
    if constexpr (constant) {
        return load(row + index * lanes<T>);
    } else {
        return broadcast(row[index]);
    }
}

template <class T, Exp exp, int count, bool constant_B, bool constant_C>
void real_states(const Block<T>& block, int first) {
    constexpr int width = lanes<T>;
    const T* A = block.A + first * width;
    T* state = block.h + first * width;
    Vec<T> h[count];
#pragma GCC unroll 16
    for (int n = 0; n < count; n++) h[n] = load(state + n * width);
    for (int t = 0; t < block.steps; t++) {
        const Vec<T> delta = load(block.delta + t * width), drive = load(block.drive + t * width);
        const T* B = block.B[t] + first * (constant_B ? width : 1);
        const T* C = block.C[t] + first * (constant_C ? width : 1);
        Vec<T> even = load(block.y + t * width), odd = {};
#pragma GCC unroll 16
        for (int n = 0; n < count; n++) {
            h[n] = exp2<T, exp>(delta * load(A + n * width)) * h[n] + drive * coefficient<constant_B>(B, n);
            (n % 2 ? odd : even) += h[n] * coefficient<constant_C>(C, n);
        }
        store<T>(block.y + t * width, even + odd);
    }
#pragma GCC unroll 16
    for (int n = 0; n < count; n++) store<T>(state + n * width, h[n]);
}

// All states of a block, as many at a time as the registers hold.
template <class T, Exp exp, bool constant_B, bool constant_C>
void all_states(const Block<T>& block, int state) {
    int n = 0;
    if constexpr (SCANLAB_REGISTERS == 32)
        for (; n + 16 <= state; n += 16) real_states<T, exp, 16, constant_B, constant_C>(block, n);
    for (; n + 8 <= state; n += 8) real_states<T, exp, 8, constant_B, constant_C>(block, n);
    for (; n + 4 <= state; n += 4) real_states<T, exp, 4, constant_B, constant_C>(block, n);
    for (; n < state; n++) real_states<T, exp, 1, constant_B, constant_C>(block, n);
}

template <class T, Exp exp>
void states_of_kind(const Block<T>& block, int state, bool constant_B, bool constant_C) {
    if (constant_B) return (constant_C ? all_states<T, exp, true, true> : all_states<T, exp, true, false>)(block, state);
    (constant_C ? all_states<T, exp, false, true> : all_states<T, exp, false, false>)(block, state);
}

template <class T>
void states(const Block<T>& block, const Scan& scan, const Direction& direction) {
    const int state = int(scan.state);
    const bool constant_B = direction.B.constant, constant_C = direction.C.constant;
    if constexpr (sizeof(T) == 4) {
        if (scan.exp == Exp::fast) return states_of_kind<T, Exp::fast>(block, state, constant_B, constant_C);
        if (scan.exp == Exp::table) return states_of_kind<T, Exp::table>(block, state, constant_B, constant_C);
    }
    states_of_kind<T, Exp::polynomial>(block, state, constant_B, constant_C);
}

// The memory one thread needs, in elements of T, in the order in which it is handed out.
struct Workspace {
    int64_t vectors, block, width, state_step;
    template <class T>
    static Workspace of(const Scan& scan) {
        constexpr int width = lanes<T>;
        const int64_t vectors = (scan.channel_tile + width - 1) / width;
        return {vectors, scan.time_block, width, (scan.state + width - 1) / width * width};
    }
    int64_t elements() const { return 6 * block * width + 2 * block * state_step + 4 * vectors * state_step * width; }
};

template <class T>
size_t workspace_bytes(const Scan& scan) {
    return Workspace::of<T>(scan).elements() * sizeof(T);
}

// (dim, state) weights of `channels` channels as [state][lanes], scaled; lanes without a channel are zero.
template <class T>
void pack(const Weights& from, int64_t channel, int channels, int state, T scale, T* to) {
    const T* data = static_cast<const T*>(from.data) + channel * from.channel;
    for (int n = 0; n < state; n++)
        for (int lane = 0; lane < lanes<T>; lane++)
            to[n * lanes<T> + lane] = lane < channels ? data[lane * from.channel + n * from.state] * scale : T(0);
}

template <class T>
SCANLAB_INLINE Vec<T> weights_of(const Weights& from, int64_t channel, int channels) {
    T values[lanes<T>] = {};
    if (from.data)
        for (int lane = 0; lane < channels; lane++)
            values[lane] = static_cast<const T*>(from.data)[(channel + lane) * from.channel];
    return load(values);
}

// The block of a (batch, dim, length) tensor that starts at step `begin` of the scan.
template <class S, class Q>
Strided<S> block_of(const Q& tensor, const Scan& scan, const Direction& direction, int64_t batch, int64_t channel,
                    int64_t begin) {
    const int64_t time = direction.reverse ? scan.length - 1 - begin : begin;
    return {static_cast<S*>(tensor.data) + batch * tensor.batch + channel * tensor.channel + time * tensor.time,
            direction.reverse ? -tensor.time : tensor.time, tensor.channel};
}

// The block of a varying projection.
template <class S>
Strided<const S> block_of(const Projection& tensor, const Scan& scan, const Direction& direction, const Tile& tile,
                          int64_t begin) {
    const int64_t time = direction.reverse ? scan.length - 1 - begin : begin;
    return {static_cast<const S*>(tensor.data) + tile.batch * tensor.batch + tile.group * tensor.group + time * tensor.time,
            direction.reverse ? -tensor.time : tensor.time, tensor.state};
}

// delta', delta' u and D u of a block. The lines of the next block are asked for on the way.
template <class T, bool with_softplus>
void prepare(int steps, Rows<T> u, Rows<T> delta, Vec<T> bias, Vec<T> D, T* step_size, T* drive, T* y) {
    constexpr int width = lanes<T>;
    for (int t = 0; t < steps; t++) {
        __builtin_prefetch(u[t + steps]);
        __builtin_prefetch(delta[t + steps]);
        const Vec<T> input = load(u[t]);
        Vec<T> step = load(delta[t]) + bias;
        if constexpr (with_softplus) step = softplus<T>(step);
        store<T>(step_size + t * width, step);
        store<T>(drive + t * width, step * input);
        store<T>(y + t * width, D * input);
    }
}

template <class T, class S>
void forward(const Scan& scan, const Tile& tile, void* memory) {
    constexpr int width = lanes<T>;
    const auto space = Workspace::of<T>(scan);
    const int state = int(scan.state);
    const int64_t line = space.block * width, weights = space.state_step * width;
    T* const buffers = static_cast<T*>(memory);
    T *const u_rows = buffers, *const delta_rows = u_rows + line, *const z_rows = delta_rows + line;
    T *const step_size = z_rows + line, *const drive = step_size + line, *const y = drive + line;
    T *const B_rows = y + line, *const C_rows = B_rows + space.block * space.state_step;
    T *const A = C_rows + space.block * space.state_step, *const h = A + space.vectors * weights;
    T *const B_fixed = h + space.vectors * weights, *const C_fixed = B_fixed + space.vectors * weights;

    for (int d = 0; d < scan.directions; d++) {
        const Direction& direction = scan.direction[d];
        for (int v = 0; v * width < tile.channels; v++) {
            const int64_t channel = tile.channel + v * width;
            const int channels = tile.channels - v * width < width ? tile.channels - v * width : width;
            pack(direction.A, channel, channels, state, log2_e<T>, A + v * weights);
            if (direction.B.constant)
                pack({direction.B.data, direction.B.channel, direction.B.state}, channel, channels, state, T(1), B_fixed + v * weights);
            if (direction.C.constant)
                pack({direction.C.data, direction.C.channel, direction.C.state}, channel, channels, state, T(1), C_fixed + v * weights);
            if (direction.initial.data) {
                const T* initial = static_cast<const T*>(direction.initial.data) + tile.batch * direction.initial.batch;
                pack({initial, direction.initial.channel, direction.initial.state}, channel, channels, state, T(1), h + v * weights);
            } else {
                memset(h + v * weights, 0, weights * sizeof(T));
            }
        }
        for (int64_t begin = 0; begin < scan.length; begin += space.block) {
            const int steps = int(scan.length - begin < space.block ? scan.length - begin : space.block);
            Rows<T> B{}, C{};
            if (!direction.B.constant)
                B = rows<T>(block_of<S>(direction.B, scan, direction, tile, begin), steps, state, false, B_rows, space.state_step);
            if (!direction.C.constant)
                C = rows<T>(block_of<S>(direction.C, scan, direction, tile, begin), steps, state, false, C_rows, space.state_step);
            for (int v = 0; v * width < tile.channels; v++) {
                const int64_t channel = tile.channel + v * width;
                const int channels = tile.channels - v * width < width ? tile.channels - v * width : width;
                const auto block_rows = [&](const Channels& tensor, T* buffer) {
                    return rows<T>(block_of<const S>(tensor, scan, direction, tile.batch, channel, begin), steps, channels, true, buffer, width);
                };
                const Rows<T> u = block_rows(direction.u, u_rows), delta = block_rows(direction.delta, delta_rows);
                const Vec<T> bias = weights_of<T>(direction.delta_bias, channel, channels);
                const Vec<T> D = weights_of<T>(direction.D, channel, channels);
                (scan.softplus ? prepare<T, true> : prepare<T, false>)(steps, u, delta, bias, D, step_size, drive, y);
                if (direction.B.constant) B = {B_fixed + v * weights, 0};
                if (direction.C.constant) C = {C_fixed + v * weights, 0};
                states(Block<T>{steps, step_size, drive, y, A + v * weights, h + v * weights, B, C}, scan, direction);

                const auto out = block_of<S>(scan.out, scan, direction, tile.batch, channel, begin);
                const bool in_place = out.column == 1;
                const Rows<T> z = direction.z.data ? block_rows(direction.z, z_rows) : Rows<T>{};
                for (int t = 0; t < steps; t++) {
                    Vec<T> value = load(y + t * width);
                    if (direction.z.data) {
                        __builtin_prefetch(z[t + steps]);
                        const Vec<T> gate = load(z[t]);
                        value *= gate * sigmoid<T>(gate);
                    }
                    if (in_place) {
                        put<T>(out.at(t), value, channels, d > 0);
                    } else {
                        store<T>(y + t * width, value);
                    }
                }
                if (!in_place) write_rows(out, steps, channels, y, d > 0);
            }
        }
        T* last = static_cast<T*>(direction.last.data) + tile.batch * direction.last.batch;
        for (int c = 0; c < tile.channels; c++)
            for (int n = 0; n < state; n++)
                last[(tile.channel + c) * direction.last.channel + n * direction.last.state] =
                    h[c / width * weights + n * width + c % width];
    }
}

}  // namespace scanlab::SCANLAB_ISA
