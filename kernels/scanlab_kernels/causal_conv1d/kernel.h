// Depthwise causal convolution: forward, and one step from a stored state. The gradients are in backward.h.
//
// Both directions and both passes are one loop: a sum over a window of the tile that begins at the same place
// for every step. In reverse the window begins at the step itself and the weights are reversed; the
// gradient of x is the convolution of the other direction. A tile's lanes are channels where channels are
// adjacent in memory and time steps of one channel where those are.
#pragma once

#include "causal_conv1d/native.h"
#include "cpu/strided.h"

namespace scanlab::SCANLAB_TARGET {

using mixer::Conv;
using mixer::ConvDirection;
using mixer::ConvUpdate;
using mixer::max_width;

inline constexpr int max_columns = 4;

// How a convolution is cut: blocks of channels, chunks of time for the threads, tiles of time for the cache.
// A tile is an array of steps, `pitch` elements apart, of one or several columns of vectors.
template <class T>
struct Tiling {
    bool along_time;
    int columns, channels, pitch;
    int64_t blocks, steps, chunk, chunks;

    explicit Tiling(const Conv& conv) {
        along_time = conv.x.column == 1 && conv.x.row != 1 && !conv.ids;
        const int64_t vectors = whole_vectors<T>(conv.dim) / lanes<T>,
                      fewest = (vectors + max_columns - 1) / max_columns;
        columns = along_time || !vectors ? 1 : int((vectors + fewest - 1) / fewest);
        channels = along_time ? 1 : columns * lanes<T>;
        pitch = channels;
        blocks = (conv.dim + channels - 1) / channels;
        steps = along_time ? 64 * lanes<T> : 32;
        chunk = 8 * steps;
        chunks = (conv.length + chunk - 1) / chunk;
    }
    // Steps rounded up to whole vectors, and the vectors of a column that they are.
    int64_t whole(int64_t count) const { return along_time ? whole_vectors<T>(count) : count; }
    int64_t vectors(int64_t count) const { return along_time ? whole_vectors<T>(count) / lanes<T> : count; }
    // The distance between the vectors of a column, where steps are `pitch` apart.
    int64_t stride(int64_t pitch) const { return along_time ? lanes<T> : pitch; }
};
// Steps of a tile, in a buffer or where they are in a tensor.
template <class T>
struct Steps {
    T* data;
    int64_t pitch;
};
template <class T>
inline constexpr int tile_size = (32 + 2 * max_width) * max_columns * lanes<T>;

struct Task {
    int64_t batch, channel, chunk;
    int channels;

    template <class T>
    Task(const Conv& conv, const Tiling<T>& cut, int64_t index)
        : Task(conv, cut, index / cut.blocks / cut.chunks, index / cut.blocks % cut.chunks, index % cut.blocks) {}
    template <class T>
    Task(const Conv& conv, const Tiling<T>& cut, int64_t batch, int64_t chunk, int64_t block)
        : batch(batch), chunk(chunk) {
        channel = block * cut.channels;
        channels = int(smaller(cut.channels, conv.dim - channel));
    }
};

// The weights of a vector of channels in the order in which a window meets them, and the bias.
template <class T>
struct Taps {
    Vec<T> weight[max_width], bias;

    // Of one channel, in every lane.
    void spread(const ConvDirection& direction, int width, int64_t channel) {
        const T* weights = static_cast<const T*>(direction.weight) + channel * width;
        for (int j = 0; j < width; j++) weight[j] = broadcast(weights[direction.reverse ? width - 1 - j : j]);
        bias = direction.bias ? broadcast(static_cast<const T*>(direction.bias)[channel]) : Vec<T>{};
    }
    void read(const ConvDirection& direction, int width, int64_t channel, int channels) {
        T rows[max_width * lanes<T>];
        const Matrix weights{const_cast<void*>(direction.weight), type_of<T>, 0, width, 1};
        read_tile(rows, lanes<T>, weights, 0, channel, channels, 0, width);
        for (int j = 0; j < width; j++) weight[j] = load<T>(rows + (direction.reverse ? width - 1 - j : j) * lanes<T>);
        bias = direction.bias ? load_some<T>(static_cast<const T*>(direction.bias) + channel, channels) : Vec<T>{};
    }
    // Those of the gradient of x.
    Taps reversed(int width) const {
        Taps other;
        other.bias = Vec<T>{};
        for (int j = 0; j < width; j++) other.weight[j] = weight[width - 1 - j];
        return other;
    }
};
template <class T>
void read_taps(Taps<T>* taps, const Conv& conv, const Tiling<T>& cut, const Task& task, int direction) {
    if (cut.along_time) return taps->spread(conv.direction[direction], conv.width, task.channel);
    for (int c = 0; c < cut.columns; c++)
        taps[c].read(conv.direction[direction], conv.width, task.channel + c * lanes<T>,
                     int(smaller(lanes<T>, larger(0, task.channels - c * lanes<T>))));
}

enum class Then { store, silu, add };

// One column: to[v] = sum over j of weight[j] x[v + j steps]; width 0 stands for one known at run time only.
template <class T, int width, Then then>
void convolve(T* to, int64_t to_stride, const T* x, int64_t stride, int64_t pitch, const Taps<T>& taps, int64_t vectors,
              int run_width) {
    const int count = width ? width : run_width;
    for (int64_t v = 0; v < vectors; v++, x += stride, to += to_stride) {
        Vec<T> sum = taps.bias;
#pragma GCC unroll 4
        for (int j = 0; j < count; j++) sum += taps.weight[j] * load<T>(x + j * pitch);
        if constexpr (then == Then::silu) sum *= sigmoid<T>(sum);
        if constexpr (then == Then::add) sum += load<T>(to);
        store<T>(to, sum);
    }
}

// The same within one sequence of several: vector v is step first + v, its window begins `window_offset` steps after
// it, and steps of another sequence count as zero.
template <class T, Then then>
void convolve_packed(Steps<T> to, Steps<const T> x, const Taps<T>& taps, int64_t steps, int width, const int32_t* ids,
                     int64_t length, int64_t first, int64_t window_offset) {
    for (int64_t v = 0; v < steps; v++) {
        const int64_t step = first + v;
        Vec<T> sum{};
        if (step >= 0 && step < length && ids[step] >= 0) {
            sum = taps.bias;
            for (int j = 0; j < width; j++) {
                const int64_t other = step + window_offset + j;
                if (other >= 0 && other < length && ids[other] == ids[step])
                    sum += taps.weight[j] * load<T>(x.data + (v + j) * x.pitch);
            }
        }
        if constexpr (then == Then::silu) sum *= sigmoid<T>(sum);
        if constexpr (then == Then::add) sum += load<T>(to.data + v * to.pitch);
        store<T>(to.data + v * to.pitch, sum);
    }
}

// Every column of `steps` steps from step `first` on.
template <class T, Then then>
void convolve(Steps<T> to, Steps<const T> x, const Conv& conv, const Tiling<T>& cut, const Task& task,
              const Taps<T>* taps, int64_t steps, int64_t first, int64_t window_offset) {
    const int width = conv.width;
    const int64_t vectors = cut.vectors(steps), to_stride = cut.stride(to.pitch), stride = cut.stride(x.pitch);
    for (int c = 0; c < cut.columns; c++, to.data += lanes<T>, x.data += lanes<T>, taps++) {
        if (conv.ids) {
            const int32_t* ids = conv.ids + task.batch * conv.length;
            convolve_packed<T, then>(to, x, *taps, steps, width, ids, conv.length, first, window_offset);
        } else if (width == 4) {
            convolve<T, 4, then>(to.data, to_stride, x.data, stride, x.pitch, *taps, vectors, width);
        } else {
            convolve<T, 0, then>(to.data, to_stride, x.data, stride, x.pitch, *taps, vectors, width);
        }
    }
}

// Steps [begin, end) of a tensor of `length` steps; zeros before and after it.
template <class T>
void read_padded(T* to, int pitch, const Matrix& from, const Task& task, int64_t length, int64_t begin, int64_t end) {
    const int64_t first = smaller(larger(begin, 0), end), last = larger(smaller(end, length), first);
    clear(to, (first - begin) * pitch);
    if (last > first)
        read_tile(to + (first - begin) * pitch, pitch, from, task.batch, task.channel, task.channels, first,
                  last - first);
    clear(to + (last - begin) * pitch, (end - last) * pitch);
}

// Steps [begin, end) of a tensor where they are, if that is the form of a tile; otherwise no data.
template <class T>
Steps<T> in_place(const Matrix& tensor, const Tiling<T>& cut, const Task& task, int64_t length, int64_t begin,
                  int64_t end) {
    const bool dense = cut.along_time ? tensor.column == 1 : tensor.row == 1 && task.channels == cut.channels;
    if (tensor.type != type_of<T> || !dense || begin < 0 || end > length) return {};
    T* first = static_cast<T*>(tensor.data) + task.batch * tensor.lead + task.channel * tensor.row;
    return {first + begin * tensor.column, tensor.column};
}

// The same of x, with zeros or the initial state around it; in `buffer` unless it can be used where it is.
template <class T>
Steps<const T> read_input(T* buffer, const Conv& conv, const Tiling<T>& cut, const Task& task, int64_t begin,
                          int64_t end) {
    if (const Steps<T> there = in_place(conv.x, cut, task, conv.length, begin, end); there.data)
        return {there.data, there.pitch};
    const int pitch = cut.pitch;
    read_padded(buffer, pitch, conv.x, task, conv.length, begin, end);
    if (!conv.initial.data) return {buffer, pitch};
    const int64_t at = conv.direction[0].reverse ? conv.length : 1 - conv.width;  // where the state begins
    const int64_t first = larger(begin, at), last = smaller(end, at + conv.width - 1);
    if (last > first) {
        T state[max_width * max_columns * lanes<T>];
        read_tile(state, pitch, conv.initial, task.batch, task.channel, task.channels, first - at, last - first);
        memcpy(buffer + (first - begin) * pitch, state, (last - first) * pitch * sizeof(T));
    }
    return {buffer, pitch};
}

// Steps [first, stop) of a task's channels, in every direction.
template <class T>
void convolve_steps(const Conv& conv, const Tiling<T>& cut, const Task& task, int64_t first, int64_t stop) {
    const int halo = conv.width - 1;
    alignas(64) T x_buffer[tile_size<T>], out_buffer[tile_size<T>];
    Taps<T> taps[2][max_columns];
    for (int d = 0; d < conv.directions; d++) read_taps(taps[d], conv, cut, task, d);
    for (int64_t step = first; step < stop; step += cut.steps) {
        const int64_t steps = smaller(cut.steps, stop - step), whole = cut.whole(steps);
        const Steps<const T> x = read_input(x_buffer, conv, cut, task, step - halo, step + whole + halo);
        for (int d = 0; d < conv.directions; d++) {
            const ConvDirection& direction = conv.direction[d];
            const int window_offset = direction.reverse ? 0 : -halo;
            const Steps<const T> window{x.data + (halo + window_offset) * x.pitch, x.pitch};
            Steps<T> out = in_place(direction.out, cut, task, conv.length, step, step + whole);
            const bool there = out.data;
            if (!there) out = {out_buffer, cut.pitch};
            if (conv.silu) convolve<T, Then::silu>(out, window, conv, cut, task, taps[d], steps, step, window_offset);
            else convolve<T, Then::store>(out, window, conv, cut, task, taps[d], steps, step, window_offset);
            if (!there)
                write_tile(out_buffer, cut.pitch, direction.out, task.batch, task.channel, task.channels, step, steps);
        }
    }
}

template <class T>
void conv_forward(const Conv& conv, int64_t begin, int64_t end) {
    const Tiling<T> cut(conv);
    for (int64_t index = begin; index < end; index++) {
        const Task task(conv, cut, index);
        convolve_steps(conv, cut, task, task.chunk * cut.chunk, smaller(conv.length, (task.chunk + 1) * cut.chunk));
    }
}

// One task is a block of channels of one row of the batch; the workspace holds its state and its input.
template <class T>
void conv_step(const ConvUpdate& update, int64_t begin, int64_t end, void* workspace) {
    const int64_t blocks = (update.dim + lanes<T> - 1) / lanes<T>, slots = update.slots;
    const int halo = update.width - 1;
    T* const window = static_cast<T*>(workspace);
    T* const out = window + (slots + update.length) * lanes<T>;
    ConvDirection direction;
    direction.weight = update.weight;
    direction.bias = update.bias;
    Taps<T> taps;
    for (int64_t index = begin; index < end; index++) {
        const int64_t batch = index / blocks, channel = index % blocks * lanes<T>;
        const int channels = int(smaller(lanes<T>, update.dim - channel));
        const int64_t row = update.rows ? update.rows[batch] : batch;
        if (row < 0) {
            clear(out, update.length * lanes<T>);
            write_tile(out, lanes<T>, update.out, batch, channel, channels, 0, update.length);
            continue;
        }
        taps.read(direction, update.width, channel, channels);
        T* const x = window + slots * lanes<T>;
        read_tile(x, lanes<T>, update.x, batch, channel, channels, 0, update.length);
        if (update.positions) {
            const int64_t position = (update.positions[batch] % slots + slots) % slots;
            for (int i = 1; i <= halo; i++)
                read_tile(x - i * lanes<T>, lanes<T>, update.state, row, channel, channels,
                          (position - i + slots) % slots, 1);
            for (int64_t i = 0; i < update.length; i++)
                write_tile(x + i * lanes<T>, lanes<T>, update.state, row, channel, channels, (position + i) % slots, 1);
        } else {
            read_tile(window, lanes<T>, update.state, row, channel, channels, 0, slots);
            write_tile(window + update.length * lanes<T>, lanes<T>, update.state, row, channel, channels, 0, slots);
        }
        const T* first = x - halo * lanes<T>;
        if (update.silu)
            convolve<T, 0, Then::silu>(out, lanes<T>, first, lanes<T>, lanes<T>, taps, update.length, update.width);
        else convolve<T, 0, Then::store>(out, lanes<T>, first, lanes<T>, lanes<T>, taps, update.length, update.width);
        write_tile(out, lanes<T>, update.out, batch, channel, channels, 0, update.length);
    }
}

}  // namespace scanlab::SCANLAB_TARGET
