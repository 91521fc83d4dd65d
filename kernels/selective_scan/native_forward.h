// The forward scan of one tile of channels.
#pragma once

#include "native_rows.h"

namespace scanlab::SCANLAB_ISA {

// The memory of a block of a strided tensor, a cache line at a time, so that loops can ask for it long before it
// is used: a burst of requests would stall where one request in each step costs nothing.
struct Lines {
    const char* first = nullptr;
    int64_t near = 0, far = 0;  // bytes between lines 16 k + i and 16 k + i + 1, and between lines k and k + 16
    SCANLAB_INLINE void request(int line) const { __builtin_prefetch(first + (line & 15) * near + (line >> 4) * far, 1, 2); }
};

template <class S>
Lines lines_of(Strided<S> block) {
    const int64_t time = block.time * int64_t(sizeof(S)), column = block.column * int64_t(sizeof(S));
    const auto first = reinterpret_cast<const char*>(block.data);
    if (block.column == 1) return {first, time, 16 * time};
    return {first, column, time > 0 ? 64 : -64};
}

// One vector of channels over one block of time. `parts` is 2 where numbers are complex: real, imaginary.
template <class T>
struct Block {
    int steps;
    const T* delta;  // [steps][lanes], after bias and softplus
    Rows<T> u;       // [steps][lanes]
    T* y;            // [steps][lanes]: <C, h>
    const T* A;      // [state][parts][lanes]; the real part times log2(e)
    T* h;            // [state][parts][lanes]
    Rows<T> B, C;    // [steps][state][parts], or constant: [state][parts][lanes], step 0
    Lines next[4];   // what the next block reads and writes
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
    const T *__restrict A = block.A + first * width, *__restrict deltas = block.delta, *__restrict u = block.u.first;
    const T* __restrict B = block.B.first + first * (constant_B ? width : 1);
    const T* __restrict C = block.C.first + first * (constant_C ? width : 1);
    T *__restrict y = block.y, *__restrict state = block.h + first * width;
    const int64_t u_step = block.u.step, B_step = block.B.step, C_step = block.C.step;
    Vec<T> h[count];
#pragma GCC unroll 16
    for (int n = 0; n < count; n++) h[n] = load(state + n * width);
    for (int t = 0; t < block.steps; t++) {
        if (first == 0)
            for (const Lines& lines : block.next) lines.request(t);
        const Vec<T> delta = load(deltas), drive = delta * load(u);
        Vec<T> even = first == 0 ? Vec<T>{} : load(y), odd = {};
#pragma GCC unroll 16
        for (int n = 0; n < count; n++) {
            h[n] = exp2<exp>(Pack<T, 1>{delta * load(A + n * width)}).of[0] * h[n] + drive * coefficient<constant_B>(B, n);
            (n % 2 ? odd : even) += h[n] * coefficient<constant_C>(C, n);
        }
        store<T>(y, even + odd);
        deltas += width, u += u_step, y += width, B += B_step, C += C_step;
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
    int64_t elements() const { return 5 * block * width + 2 * block * state_step + 4 * vectors * state_step * width; }
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

// Steps that go through softplus or the gate side by side.
inline constexpr int abreast = SCANLAB_REGISTERS / 8;

template <class T, int count>
SCANLAB_INLINE Pack<T, count> load_steps(Rows<T> rows, int t) {
    Pack<T, count> steps;
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) steps.of[i] = load(rows[t + i]);
    return steps;
}
template <class T, int count>
SCANLAB_INLINE void store_steps(T* to, const Pack<T, count>& steps) {
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) store<T>(to + i * lanes<T>, steps.of[i]);
}

template <int number>
struct Count {
    static constexpr int value = number;
};

// Calls work(count, t) for steps t to t + count - 1, with the largest counts first.
template <class Work>
SCANLAB_INLINE void for_steps(int steps, const Work& work) {
    int t = 0;
    for (; t + abreast <= steps; t += abreast) work(Count<abreast>{}, t);
    for (; t < steps; t++) work(Count<1>{}, t);
}

// delta' of a block.
template <class T, bool with_softplus>
void step_sizes(int steps, Rows<T> delta, Vec<T> bias, T* to) {
    for_steps(steps, [=](auto count, int t) {
        auto step = each(load_steps<T, count.value>(delta, t), [=](Vec<T> v) { return v + bias; });
        if constexpr (with_softplus) step = softplus(step);
        store_steps(to + t * lanes<T>, step);
    });
}

// (y + D u) silu(z) of a block, to its place or added to what is there; z may be missing.
template <class T, class S>
void finish(int steps, T* y, Rows<T> u, Vec<T> D, Rows<T> z, Strided<S> out, int channels, bool add) {
    constexpr int width = lanes<T>;
    const bool in_place = out.column == 1;
    for_steps(steps, [=](auto count, int t) {
        const auto skip = each(load_steps<T, count.value>(u, t), [=](Vec<T> v) { return v * D; });
        auto value = load_steps<T, count.value>({y, width}, t) + skip;
        if (z.first) {
            const auto gate = load_steps<T, count.value>(z, t);
            value = value * (gate * sigmoid(gate));
        }
        if (in_place) {
#pragma GCC unroll 8
            for (int i = 0; i < count.value; i++) put<T>(out.at(t + i), value.of[i], channels, add);
        } else {
            store_steps(y + t * width, value);
        }
    });
    if (!in_place) write_rows(out, steps, channels, y, add);
}

template <class T, class S>
void forward(const Scan& scan, const Tile& tile, void* memory) {
    constexpr int width = lanes<T>;
    const auto space = Workspace::of<T>(scan);
    const int state = int(scan.state);
    const int64_t line = space.block * width, weights = space.state_step * width;
    T* const buffers = static_cast<T*>(memory);
    T *const u_rows = buffers, *const delta_rows = u_rows + line, *const z_rows = delta_rows + line;
    T *const step_size = z_rows + line, *const y = step_size + line;
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
                const auto out = block_of<S>(scan.out, scan, direction, tile.batch, channel, begin);
                // Vectors of channels come first, then time: the next block may be either's.
                const bool last_vector = (v + 1) * width >= tile.channels;
                const int64_t next_channel = last_vector ? tile.channel : channel + width;
                const int64_t next_begin = last_vector && begin + steps < scan.length ? begin + steps : begin;
                const auto next = [&](const Channels& tensor) {
                    return lines_of(block_of<const S>(tensor, scan, direction, tile.batch, next_channel, next_begin));
                };
                (scan.softplus ? step_sizes<T, true> : step_sizes<T, false>)(steps, delta, bias, step_size);
                if (direction.B.constant) B = {B_fixed + v * weights, 0};
                if (direction.C.constant) C = {C_fixed + v * weights, 0};
                states(Block<T>{steps, step_size, u, y, A + v * weights, h + v * weights, B, C,
                                {next(direction.u), next(direction.delta), next(direction.z), next(scan.out)}}, scan, direction);

                const Rows<T> z = direction.z.data ? block_rows(direction.z, z_rows) : Rows<T>{};
                finish(steps, y, u, D, z, out, channels, d > 0);
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
