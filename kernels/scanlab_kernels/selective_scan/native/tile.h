// A tile of channels: the addresses of its tensors, the values packed for its vectors, the discretisation of delta.
#pragma once

#include "selective_scan/native/recurrence.h"

namespace scanlab::SCANLAB_TARGET {

// Hands out memory in pieces of whole vectors; without memory it only counts.
template <class T>
struct Arena {
    T* memory;
    int64_t taken = 0;
    T* take(int64_t elements) {
        const int64_t first = taken;
        taken += (elements + lanes<T> - 1) / lanes<T> * lanes<T>;
        return memory ? memory + first : nullptr;
    }
};

// (dim, state) weights of `channels` channels as [state][parts][lanes]; lanes without a channel are zero.
template <class T>
void pack(const Weights& from, int64_t channel, int channels, int state, int parts, T* to) {
    const T* data = static_cast<const T*>(from.data) + channel * from.channel * parts;
    for (int p = 0; p < parts; p++)
        read_rows<T>(data + p, from.state * parts, from.channel * parts, state, channels, to + p * lanes<T>,
                     parts * lanes<T>);
}

// The reverse: [state][parts][lanes] to (dim, state) weights.
template <class T>
void unpack(const T* from, int64_t channel, int channels, int state, int parts, T* to, int64_t channel_step,
            int64_t state_step) {
    to += channel * channel_step * parts;
    for (int p = 0; p < parts; p++)
        write_rows<T>(to + p, state_step * parts, channel_step * parts, state, channels, from + p * lanes<T>,
                      parts * lanes<T>, false);
}

template <class T>
SCANLAB_INLINE Vec<T> vector_of(const Weights& from, int64_t channel, int channels) {
    if (!from.data) return Vec<T>{};
    const T* const data = static_cast<const T*>(from.data) + channel * from.channel;
    if (from.channel == 1) return load_some<T>(data, channels);
    T values[lanes<T>] = {};
    for (int lane = 0; lane < channels; lane++) values[lane] = data[lane * from.channel];
    return load(values);
}

template <class T>
struct TileContext {
    static constexpr int width = lanes<T>;
    const Scan& scan;
    const Direction& direction;
    const Tile& tile;
    const int state = int(scan.state), parts = scan.complex ? 2 : 1;
    const int64_t numbers = scan.state * parts * width;  // elements of [state][parts][lanes]
    const int64_t line = int64_t(scan.time_block) * width, row = (scan.state * parts + width - 1) / width * width;
    T *u_rows, *delta_rows, *z_rows, *step_size, *y, *B_rows, *C_rows, *A, *h, *B_fixed, *C_fixed;

    // Takes memory out of the arena; an arena without memory counts how much is needed.
    TileContext(const Scan& scan, int direction, const Tile& tile, Arena<T>& arena)
        : scan(scan), direction(scan.direction[direction]), tile(tile) {
        for (T** piece : {&u_rows, &delta_rows, &z_rows, &step_size, &y}) *piece = arena.take(line);
        for (T** piece : {&B_rows, &C_rows}) *piece = arena.take(scan.time_block * row);
        for (T** piece : {&A, &h, &B_fixed, &C_fixed}) *piece = arena.take(vectors() * numbers);
    }

    int vectors() const { return (tile.channels + width - 1) / width; }
    int64_t channel(int v) const { return tile.channel + v * width; }
    int channels(int v) const { return tile.channels - v * width < width ? tile.channels - v * width : width; }
    int steps(int64_t begin) const {
        return int(scan.length - begin < scan.time_block ? scan.length - begin : scan.time_block);
    }

    // The block of a (batch, dim, length) tensor from step `begin` of the scan.
    Strided block_of(const Channels& tensor, int64_t channel, int64_t begin) const {
        const int64_t time = direction.reverse ? scan.length - 1 - begin : begin;
        const int64_t at = tile.batch * tensor.batch + channel * tensor.channel + time * tensor.time;
        return {scan.type, static_cast<char*>(tensor.data) + at * size_of(scan.type),
                direction.reverse ? -tensor.time : tensor.time, tensor.channel};
    }
    Rows<T> rows_of(const Channels& tensor, int v, int64_t begin, T* buffer) const {
        if (!tensor.data) return {};
        return rows<T>(block_of(tensor, channel(v), begin), steps(begin), channels(v), true, buffer, width);
    }
    // The rows as they are stored, where whole vectors of channels are adjacent.
    template <class S>
    Rows<S> stored(const Channels& tensor, int v, int64_t begin) const {
        if (!tensor.data) return {};
        const Strided block = block_of(tensor, channel(v), begin);
        return {reinterpret_cast<const S*>(block.data), block.time};
    }

    // The block of a varying B or C from step `begin` of the scan; complex ones have (real, imaginary) pairs along
    // time.
    Strided block_of(const Projection& tensor, int64_t begin) const {
        const int64_t time = (direction.reverse ? scan.length - 1 - begin : begin) * parts;
        const int64_t at = tile.batch * tensor.batch + tile.group * tensor.group + time * tensor.time;
        const int64_t step = (direction.reverse ? -parts : parts) * tensor.time;
        return {scan.type, static_cast<char*>(const_cast<void*>(tensor.data)) + at * size_of(scan.type), step,
                tensor.state};
    }
    Rows<T> rows_of(const Projection& tensor, int64_t begin, T* buffer) const {
        if (tensor.constant) return {};
        const Strided block = block_of(tensor, begin);
        const int64_t step = block.time;
        if (parts == 1) return rows<T>(block, steps(begin), state, false, buffer, row);
        typed<T>(block, [&](const auto* data) {
            for (int i = 0; i < steps(begin); i++)
                for (int n = 0; n < state; n++)
                    for (int p = 0; p < parts; p++)
                        buffer[i * row + n * parts + p] =
                            scalar<T>(data[i * step + n * tensor.state + p * tensor.time]);
        });
        return {buffer, row};
    }

    // A, constant B and C, and the state before the first step.
    void pack_weights() {
        for (int v = 0; v < vectors(); v++) {
            const auto packed = [&](const Weights& from, T* to) {
                pack(from, channel(v), channels(v), state, parts, to + v * numbers);
            };
            packed(direction.A, A);
            for (int n = 0; n < state; n++) {
                T* rate = A + v * numbers + n * parts * width;
                store<T>(rate, load(rate) * log2_e<T>);
            }
            if (direction.B.constant) packed({direction.B.data, direction.B.channel, direction.B.state}, B_fixed);
            if (direction.C.constant) packed({direction.C.data, direction.C.channel, direction.C.state}, C_fixed);
            memset(h + v * numbers, 0, numbers * sizeof(T));
            if (direction.initial.data) {
                const T* initial =
                    static_cast<const T*>(direction.initial.data) + tile.batch * direction.initial.batch * parts;
                packed({initial, direction.initial.channel, direction.initial.state}, h);
            }
        }
    }

    // Where the states before the block from step `begin` are kept, for the channels of vector v.
    T* checkpoint(int d, int v, int64_t begin) const {
        const int64_t blocks = (scan.length + scan.time_block - 1) / scan.time_block;
        const int64_t index = (d * scan.batch + tile.batch) * blocks + begin / scan.time_block;
        return static_cast<T*>(scan.checkpoints) + index * scan.state * parts * scan.dim + channel(v);
    }

    // Notes the addresses that the next block reads and writes: the next vector of channels, or after the last one the
    // block `time_step` blocks later.
    void prefetch_next(Block<T>& block, int d, int v, int64_t begin, int time_step,
                       std::initializer_list<const Channels*> tensors) const {
        const bool last_vector = v + 1 == vectors();
        const int64_t later = begin + int64_t(time_step) * scan.time_block;
        const int64_t next_begin = last_vector && later >= 0 && later < scan.length ? later : begin;
        const int next = last_vector ? 0 : v + 1;
        for (const Channels* tensor : tensors)
            if (tensor->data)
                block.prefetches[block.num_prefetches++] = prefetch_of(block_of(*tensor, channel(next), next_begin));
        for (const Projection* tensor : {&direction.B, &direction.C})
            if (last_vector && !tensor->constant)
                block.prefetches[block.num_prefetches++] = prefetch_of(block_of(*tensor, next_begin));
        if (scan.checkpoints) {
            const int64_t row_bytes = scan.dim * sizeof(T);
            block.prefetches[block.num_prefetches++] = {reinterpret_cast<char*>(checkpoint(d, next, next_begin)),
                                                        row_bytes, scan.state * parts > 16 ? 16 * row_bytes : 0};
        }
    }

    Block<T> block(int v, int64_t begin, Rows<T> B, Rows<T> C, Rows<T> u) const {
        Block<T> block{.steps = steps(begin),
                       .num_states = state,
                       .constant_B = direction.B.constant,
                       .constant_C = direction.C.constant,
                       .delta = step_size,
                       .u = u,
                       .y = y,
                       .A = A + v * numbers,
                       .h = h + v * numbers,
                       .B = B,
                       .C = C,
                       .prefetches = {},
                       .num_prefetches = 0,
                       .decays = nullptr,
                       .history = nullptr};
        if (direction.B.constant) block.B = {B_fixed + v * numbers, 0};
        if (direction.C.constant) block.C = {C_fixed + v * numbers, 0};
        return block;
    }
};

// Steps whose softplus or gate is computed side by side, so that none waits for its own results.
inline constexpr int time_unroll = SCANLAB_REGISTERS / 8;

template <int number>
struct Count {
    static constexpr int value = number;
};

// Calls work(count, t) for steps t to t + count - 1, with the largest counts first.
template <class Work>
SCANLAB_INLINE void for_steps(int steps, const Work& work) {
    int t = 0;
    for (; t + time_unroll <= steps; t += time_unroll) work(Count<time_unroll>{}, t);
    for (; t < steps; t++) work(Count<1>{}, t);
}

template <class T, int count, class S = T>
SCANLAB_INLINE Pack<T, count> load_steps(Rows<S> rows, int t) {
    Pack<T, count> steps;
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) steps.of[i] = load<T>(rows[t + i]);
    return steps;
}
template <class T, int count>
SCANLAB_INLINE void store_steps(T* to, const Pack<T, count>& steps) {
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) store<T>(to + i * lanes<T>, steps.of[i]);
}

// The results of discretisation: delta', or also the derivative of softplus.
enum class DeltaOutputs { value, value_and_slope };

// delta' of a block, and after softplus its derivative where asked for; returns the rows of u as T, copied on the way
// where S is not T.
template <class T, bool with_softplus, DeltaOutputs wanted, class S>
Rows<T> discretize_delta(int steps, Rows<S> delta, Vec<T> bias, T* to, T* slopes, Rows<S> u, T* u_buffer) {
    for_steps(steps, [=](auto count, int t) SCANLAB_ALWAYS_INLINE {
        auto step = each(load_steps<T, count.value>(delta, t), [=](Vec<T> v) { return v + bias; });
        if constexpr (with_softplus) {
            const auto power = exp_of_minus_size(step);
            if constexpr (wanted == DeltaOutputs::value_and_slope)
                store_steps(slopes + t * lanes<T>, softplus_slope(step, power));
            step = softplus(step, power);
        }
        store_steps(to + t * lanes<T>, step);
        if constexpr (sizeof(S) != sizeof(T)) store_steps(u_buffer + t * lanes<T>, load_steps<T, count.value>(u, t));
    });
    if constexpr (sizeof(S) == sizeof(T)) return u;
    else return {u_buffer, lanes<T>};
}

}  // namespace scanlab::SCANLAB_TARGET
