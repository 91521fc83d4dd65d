// A tile of channels on its way through time: where its tensors lie and what is packed for its vectors.
#pragma once

#include "native_states.h"

namespace scanlab::SCANLAB_ISA {

// Hands out memory in pieces of whole vectors.
template <class T>
struct Arena {
    T* next;
    T* take(int64_t elements) {
        T* piece = next;
        next += (elements + lanes<T> - 1) / lanes<T> * lanes<T>;
        return piece;
    }
};

// (dim, state) weights of `channels` channels as [state][parts][lanes], parts scaled; other lanes are zero.
template <class T, int parts>
void pack(const Weights& from, int64_t channel, int channels, int state, T real_scale, T* to) {
    const T* data = static_cast<const T*>(from.data);
    for (int n = 0; n < state; n++)
        for (int p = 0; p < parts; p++)
            for (int lane = 0; lane < lanes<T>; lane++) {
                const int64_t at = (channel + lane) * from.channel + n * from.state;
                *to++ = lane < channels ? data[at * parts + p] * (p == 0 ? real_scale : T(1)) : T(0);
            }
}

// The reverse: [state][parts][lanes] to (dim, state) weights.
template <class T, int parts>
void unpack(const T* from, int64_t channel, int channels, int state, T* to, int64_t channel_step, int64_t state_step) {
    for (int n = 0; n < state; n++)
        for (int p = 0; p < parts; p++, from += lanes<T>)
            for (int lane = 0; lane < channels; lane++)
                to[((channel + lane) * channel_step + n * state_step) * parts + p] = from[lane];
}

template <class T>
SCANLAB_INLINE Vec<T> vector_of(const Weights& from, int64_t channel, int channels) {
    T values[lanes<T>] = {};
    if (from.data)
        for (int lane = 0; lane < channels; lane++)
            values[lane] = static_cast<const T*>(from.data)[(channel + lane) * from.channel];
    return load(values);
}

template <class T, class S, int parts>
struct TileWalk {
    static constexpr int width = lanes<T>;
    const Scan& scan;
    const Direction& direction;
    const Tile& tile;
    const int state = int(scan.state);
    const int64_t numbers = scan.state * parts * width;  // elements of [state][parts][lanes]
    const int64_t line = int64_t(scan.time_block) * width, row = (scan.state * parts + width - 1) / width * width;
    T *u_rows, *delta_rows, *z_rows, *step_size, *y, *B_rows, *C_rows, *A, *h, *B_fixed, *C_fixed;

    // Hands out the memory of a walk; the same requests tell how much it needs.
    TileWalk(const Scan& scan, int direction, const Tile& tile, Arena<T>& arena)
        : scan(scan), direction(scan.direction[direction]), tile(tile) {
        for (T** piece : {&u_rows, &delta_rows, &z_rows, &step_size, &y}) *piece = arena.take(line);
        for (T** piece : {&B_rows, &C_rows}) *piece = arena.take(scan.time_block * row);
        for (T** piece : {&A, &h, &B_fixed, &C_fixed}) *piece = arena.take(vectors() * numbers);
    }

    int vectors() const { return (tile.channels + width - 1) / width; }
    int64_t channel(int v) const { return tile.channel + v * width; }
    int channels(int v) const { return tile.channels - v * width < width ? tile.channels - v * width : width; }
    int steps(int64_t begin) const { return int(scan.length - begin < scan.time_block ? scan.length - begin : scan.time_block); }

    // The block of a (batch, dim, length) tensor from step `begin` of the scan.
    template <class Q>
    Strided<Q> block_of(const Channels& tensor, int64_t channel, int64_t begin) const {
        const int64_t time = direction.reverse ? scan.length - 1 - begin : begin;
        return {static_cast<Q*>(tensor.data) + tile.batch * tensor.batch + channel * tensor.channel + time * tensor.time,
                direction.reverse ? -tensor.time : tensor.time, tensor.channel};
    }
    Rows<T> rows_of(const Channels& tensor, int v, int64_t begin, T* buffer) const {
        if (!tensor.data) return {};
        return rows<T>(block_of<const S>(tensor, channel(v), begin), steps(begin), channels(v), true, buffer, width);
    }

    // A block of a varying B or C; complex ones have (real, imaginary) pairs along time.
    Rows<T> rows_of(const Projection& tensor, int64_t begin, T* buffer) const {
        if (tensor.constant) return {};
        const int64_t time = (direction.reverse ? scan.length - 1 - begin : begin) * parts;
        const S* data = static_cast<const S*>(tensor.data) + tile.batch * tensor.batch + tile.group * tensor.group + time * tensor.time;
        const int64_t step = (direction.reverse ? -parts : parts) * tensor.time;
        if constexpr (parts == 1) return rows<T>(Strided<const S>{data, step, tensor.state}, steps(begin), state, false, buffer, row);
        for (int i = 0; i < steps(begin); i++)
            for (int n = 0; n < state; n++)
                for (int p = 0; p < parts; p++)
                    buffer[i * row + n * parts + p] = scalar<T>(data[i * step + n * tensor.state + p * tensor.time]);
        return {buffer, row};
    }

    // A, constant B and C, and the state before the first step.
    void pack_weights() {
        for (int v = 0; v < vectors(); v++) {
            const auto packed = [&](const Weights& from, T scale, T* to) {
                pack<T, parts>(from, channel(v), channels(v), state, scale, to + v * numbers);
            };
            packed(direction.A, log2_e<T>, A);
            if (direction.B.constant) packed({direction.B.data, direction.B.channel, direction.B.state}, T(1), B_fixed);
            if (direction.C.constant) packed({direction.C.data, direction.C.channel, direction.C.state}, T(1), C_fixed);
            memset(h + v * numbers, 0, numbers * sizeof(T));
            if (direction.initial.data) {
                const T* initial = static_cast<const T*>(direction.initial.data) + tile.batch * direction.initial.batch * parts;
                packed({initial, direction.initial.channel, direction.initial.state}, T(1), h);
            }
        }
    }

    // Where the states before the block from step `begin` are kept, for the channels of vector v.
    T* checkpoint(int d, int v, int64_t begin) const {
        const int64_t blocks = (scan.length + scan.time_block - 1) / scan.time_block;
        const int64_t index = (d * scan.batch + tile.batch) * blocks + begin / scan.time_block;
        return static_cast<T*>(scan.checkpoints) + index * scan.state * parts * scan.dim + channel(v);
    }

    Block<T> block(int v, int64_t begin, Rows<T> B, Rows<T> C, Rows<T> u) const {
        Block<T> block{steps(begin), state, direction.B.constant, direction.C.constant, step_size, u, y, A + v * numbers, h + v * numbers, B, C, {}, nullptr, nullptr};
        if (direction.B.constant) block.B = {B_fixed + v * numbers, 0};
        if (direction.C.constant) block.C = {C_fixed + v * numbers, 0};
        return block;
    }
};

// Steps that go through softplus or the gate side by side.
inline constexpr int abreast = SCANLAB_REGISTERS / 8;

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
// To step t of a strided block whose columns are adjacent.
template <class T, class S, int count>
SCANLAB_INLINE void put_steps(Strided<S> to, int t, const Pack<T, count>& steps, int channels, bool add) {
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) put<T>(to.at(t + i), steps.of[i], channels, add);
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

}  // namespace scanlab::SCANLAB_ISA
