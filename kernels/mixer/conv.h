// Depthwise causal convolution: forward, backward, and one step from a stored state.
//
// Both directions and both passes are one loop: a sum over a window of the tile that begins at the same place
// for every step. In reverse the window begins at the step itself and the weights are turned round; the
// gradient of x is the convolution of the other direction. A tile's lanes are channels where channels are
// adjacent in memory and time steps of one channel where those are.
#pragma once

#include "tiles.h"

namespace scanlab::SCANLAB_ISA {

using mixer::Conv;
using mixer::ConvDirection;
using mixer::ConvUpdate;
using mixer::max_width;

inline constexpr int tile_vectors = 64;
inline constexpr int tiles_in_chunk = 16;

// How a convolution is cut: blocks of channels, chunks of time for the threads, tiles of time for the cache.
template <class T>
struct Cut {
    bool along_time;
    int pitch, channels;  // of a tile
    int64_t blocks, steps, chunk, chunks;

    explicit Cut(const Conv& conv) {
        along_time = conv.x.column == 1 && conv.x.row != 1 && !conv.ids;
        pitch = along_time ? 1 : lanes<T>;
        channels = along_time ? 1 : lanes<T>;
        blocks = (conv.dim + channels - 1) / channels;
        steps = tile_vectors * (along_time ? lanes<T> : 1);
        chunk = steps * tiles_in_chunk;
        chunks = (conv.length + chunk - 1) / chunk;
    }
    // Steps rounded up to whole vectors.
    int64_t whole(int64_t count) const { return along_time ? whole_vectors<T>(count) : count; }
};

struct Task {
    int64_t batch, channel, chunk;
    int channels;

    template <class T>
    Task(const Conv& conv, const Cut<T>& cut, int64_t index) {
        const int64_t block = index % cut.blocks;
        chunk = index / cut.blocks % cut.chunks;
        batch = index / cut.blocks / cut.chunks;
        channel = block * cut.channels;
        channels = int(smaller(cut.channels, conv.dim - channel));
    }
};

// Weights in the order in which a window meets them, a vector for each, and the bias.
template <class T>
struct Taps {
    Vec<T> weight[max_width], bias;

    Taps(const ConvDirection& direction, int width, int64_t channel, int channels, bool spread) {
        const T* weights = static_cast<const T*>(direction.weight) + channel * width;
        const T* biases = static_cast<const T*>(direction.bias);
        bias = Vec<T>{};
        for (int j = 0; j < width; j++) {
            const T* tap = weights + (direction.reverse ? width - 1 - j : j);
            weight[j] = spread ? broadcast(*tap) : Vec<T>{};
            for (int i = 0; !spread && i < channels; i++) weight[j][i] = tap[i * width];
        }
        if (!biases) return;
        bias = spread ? broadcast(biases[channel]) : load_some<T>(biases + channel, channels);
    }
    // Those of the gradient of x.
    Taps turned(int width) const {
        Taps other = *this;
        other.bias = Vec<T>{};
        for (int j = 0; j < width; j++) other.weight[j] = weight[width - 1 - j];
        return other;
    }
};

enum class Then { store, silu, add };

// to[v] = sum over j of weight[j] x[v + j steps]; width 0 stands for one known at run time only.
template <class T, int width, Then then>
void convolve(T* to, const T* x, int pitch, const Taps<T>& taps, int64_t vectors, int run_width) {
    const int count = width ? width : run_width;
    for (int64_t v = 0; v < vectors; v++) {
        Vec<T> sum = taps.bias;
#pragma GCC unroll 4
        for (int j = 0; j < count; j++) sum += taps.weight[j] * load<T>(x + v * lanes<T> + j * pitch);
        if constexpr (then == Then::silu) sum *= sigmoid<T>(sum);
        if constexpr (then == Then::add) sum += load<T>(to + v * lanes<T>);
        store<T>(to + v * lanes<T>, sum);
    }
}
template <class T, Then then>
void convolve(T* to, const T* x, int pitch, const Taps<T>& taps, int64_t vectors, int width) {
    switch (width) {
        case 2: return convolve<T, 2, then>(to, x, pitch, taps, vectors, width);
        case 3: return convolve<T, 3, then>(to, x, pitch, taps, vectors, width);
        case 4: return convolve<T, 4, then>(to, x, pitch, taps, vectors, width);
        default: return convolve<T, 0, then>(to, x, pitch, taps, vectors, width);
    }
}

// The same within one sequence of several: step i of the tile is step first + i, its window begins `ahead`
// steps after it, and what belongs to another sequence counts as zero.
template <class T, Then then>
void convolve_packed(T* to, const T* x, const Taps<T>& taps, int64_t steps, int width, const int32_t* ids,
                     int64_t length, int64_t first, int64_t ahead) {
    for (int64_t i = 0; i < steps; i++) {
        const int64_t step = first + i;
        Vec<T> sum{};
        if (step >= 0 && step < length && ids[step] >= 0) {
            sum = taps.bias;
            for (int j = 0; j < width; j++) {
                const int64_t other = step + ahead + j;
                if (other >= 0 && other < length && ids[other] == ids[step])
                    sum += taps.weight[j] * load<T>(x + (i + j) * lanes<T>);
            }
        }
        if constexpr (then == Then::silu) sum *= sigmoid<T>(sum);
        if constexpr (then == Then::add) sum += load<T>(to + i * lanes<T>);
        store<T>(to + i * lanes<T>, sum);
    }
}

// Steps [begin, end) of a tensor of `length` steps; zeros before and after it.
template <class T>
void read_padded(T* to, int pitch, const Matrix& from, const Task& task, int64_t length, int64_t begin, int64_t end) {
    const int64_t first = smaller(larger(begin, 0), end), last = larger(smaller(end, length), first);
    clear(to, (first - begin) * pitch);
    if (last > first) read_tile(to + (first - begin) * pitch, pitch, from, task.batch, task.channel, task.channels, first, last - first);
    clear(to + (last - begin) * pitch, (end - last) * pitch);
}

// The same of x, with the initial state before it, or after it in reverse.
template <class T>
void read_input(T* to, int pitch, const Conv& conv, const Task& task, int64_t begin, int64_t end) {
    read_padded(to, pitch, conv.x, task, conv.length, begin, end);
    if (!conv.initial.data) return;
    const int64_t at = conv.direction[0].reverse ? conv.length : 1 - conv.width;  // where the state begins
    const int64_t first = larger(begin, at), last = smaller(end, at + conv.width - 1);
    if (last <= first) return;
    T state[(max_width + 1) * SCANLAB_VECTOR_BYTES / sizeof(T)];
    read_tile(state, pitch, conv.initial, task.batch, task.channel, task.channels, first - at, last - first);
    memcpy(to + (first - begin) * pitch, state, (last - first) * pitch * sizeof(T));
}

template <class T>
inline constexpr int tile_size = (tile_vectors + 2 * max_width + 2) * lanes<T>;

template <class T>
void conv_forward(const Conv& conv, int64_t begin, int64_t end) {
    const Cut<T> cut(conv);
    const int halo = conv.width - 1;
    alignas(64) T x[tile_size<T>], out[tile_size<T>];
    for (int64_t index = begin; index < end; index++) {
        const Task task(conv, cut, index);
        const Taps<T> taps[2] = {
            {conv.direction[0], conv.width, task.channel, task.channels, cut.along_time},
            {conv.direction[conv.directions - 1], conv.width, task.channel, task.channels, cut.along_time},
        };
        const int64_t stop = smaller(conv.length, (task.chunk + 1) * cut.chunk);
        for (int64_t step = task.chunk * cut.chunk; step < stop; step += cut.steps) {
            const int64_t steps = smaller(cut.steps, stop - step), whole = cut.whole(steps);
            const int64_t vectors = whole * cut.pitch / lanes<T>;
            read_input(x, cut.pitch, conv, task, step - halo, step + whole + halo);
            for (int d = 0; d < conv.directions; d++) {
                const ConvDirection& direction = conv.direction[d];
                const int ahead = direction.reverse ? 0 : -halo;
                const T* window = x + (halo + ahead) * cut.pitch;
                if (conv.ids) {
                    const int32_t* ids = conv.ids + task.batch * conv.length;
                    if (conv.silu) convolve_packed<T, Then::silu>(out, window, taps[d], steps, conv.width, ids, conv.length, step, ahead);
                    else convolve_packed<T, Then::store>(out, window, taps[d], steps, conv.width, ids, conv.length, step, ahead);
                } else {
                    if (conv.silu) convolve<T, Then::silu>(out, window, cut.pitch, taps[d], vectors, conv.width);
                    else convolve<T, Then::store>(out, window, cut.pitch, taps[d], vectors, conv.width);
                }
                write_tile(out, cut.pitch, direction.out, task.batch, task.channel, task.channels, step, steps);
            }
        }
    }
}

// Shares of the gradient of the weights, in the order of the window, and of the bias.
template <class T, int width>
void add_products(Vec<T>* sums, const T* grad, const T* x, int pitch, int64_t vectors, int run_width) {
    const int count = width ? width : run_width;
    Vec<T> sum[(width ? width : max_width) + 1] = {};
    for (int64_t v = 0; v < vectors; v++) {
        const Vec<T> g = load<T>(grad + v * lanes<T>);
#pragma GCC unroll 4
        for (int j = 0; j < count; j++) sum[j] += g * load<T>(x + v * lanes<T> + j * pitch);
        sum[count] += g;
    }
    for (int j = 0; j <= count; j++) sums[j] += sum[j];
}
template <class T>
void add_products_packed(Vec<T>* sums, const T* grad, const T* x, int64_t steps, int width, const int32_t* ids,
                         int64_t length, int64_t first, int64_t ahead) {
    for (int64_t i = 0; i < steps; i++) {
        const int64_t step = first + i;
        if (ids[step] < 0) continue;
        const Vec<T> g = load<T>(grad + i * lanes<T>);
        for (int j = 0; j < width; j++) {
            const int64_t other = step + ahead + j;
            if (other >= 0 && other < length && ids[other] == ids[step]) sums[j] += g * load<T>(x + (i + j) * lanes<T>);
        }
        sums[width] += g;
    }
}

// The gradient of the initial state, from the gradient of the sums that saw it: `grad` holds those of the
// first (in reverse: the last) width - 1 steps of the sequence, zeros beyond it.
template <class T>
void write_grad_initial(const Conv& conv, const Task& task, const Taps<T>& taps, const T* grad, int pitch) {
    const int halo = conv.width - 1;
    T result[(max_width + 1) * SCANLAB_VECTOR_BYTES / sizeof(T)];
    for (int at = 0; at < halo; at++)
        for (int lane = 0; lane < task.channels; lane++) {
            T sum = 0;
            // Slot `at` is element j of the window of the step that begins at slot at - j.
            if (conv.direction[0].reverse)
                for (int j = at + 1; j <= halo; j++) sum += taps.weight[j][lane] * grad[(halo + at - j) * pitch + lane];
            else
                for (int j = 0; j <= at; j++) sum += taps.weight[j][lane] * grad[(at - j) * pitch + lane];
            result[at * pitch + lane] = sum;
        }
    write_tile(result, pitch, conv.grad_initial, task.batch, task.channel, task.channels, 0, halo);
}

template <class T>
void conv_gradients(const Conv& conv, int64_t begin, int64_t end) {
    const Cut<T> cut(conv);
    const int width = conv.width, halo = width - 1, pitch = cut.pitch;
    alignas(64) T x[tile_size<T>], grad[tile_size<T>], sum[tile_size<T>], grad_x[tile_size<T>];
    for (int64_t index = begin; index < end; index++) {
        const Task task(conv, cut, index);
        const int32_t* ids = conv.ids ? conv.ids + task.batch * conv.length : nullptr;
        const Taps<T> taps[2] = {
            {conv.direction[0], width, task.channel, task.channels, cut.along_time},
            {conv.direction[conv.directions - 1], width, task.channel, task.channels, cut.along_time},
        };
        Vec<T> shares[2][max_width + 1] = {};
        const int64_t stop = smaller(conv.length, (task.chunk + 1) * cut.chunk);
        for (int64_t step = task.chunk * cut.chunk; step < stop; step += cut.steps) {
            const int64_t steps = smaller(cut.steps, stop - step), whole = cut.whole(steps);
            // A step of x is seen by the windows of its own step and of width - 1 others.
            const int64_t seen = cut.whole(steps + halo), seen_vectors = seen * pitch / lanes<T>;
            const int64_t vectors = whole * pitch / lanes<T>;
            read_input(x, pitch, conv, task, step - halo, step + larger(seen, whole + halo));
            clear(grad_x, whole * pitch);
            for (int d = 0; d < conv.directions; d++) {
                const ConvDirection& direction = conv.direction[d];
                const int ahead = direction.reverse ? 0 : -halo, own = direction.reverse ? halo : 0;
                const int64_t first = step - own;
                read_padded(grad, pitch, direction.out, task, conv.length, first, first + seen);
                if (conv.silu) {
                    if (ids) convolve_packed<T, Then::store>(sum, x, taps[d], seen, width, ids, conv.length, first, ahead);
                    else convolve<T, Then::store>(sum, x, pitch, taps[d], seen_vectors, width);
                    for (int64_t v = 0; v < seen_vectors * lanes<T>; v += lanes<T>) {
                        const Vec<T> a = load<T>(sum + v), s = sigmoid<T>(a);
                        store<T>(grad + v, load<T>(grad + v) * s * (T(1) + a * (T(1) - s)));
                    }
                }
                const Taps<T> turned = taps[d].turned(width);
                if (ids) {
                    convolve_packed<T, Then::add>(grad_x, grad, turned, steps, width, ids, conv.length, step, -own);
                    add_products_packed(shares[d], grad + own * pitch, x + own * pitch, steps, width, ids, conv.length, step, ahead);
                } else {
                    convolve<T, Then::add>(grad_x, grad, pitch, turned, vectors, width);
                    const T *g = grad + own * pitch, *w = x + own * pitch;
                    switch (width) {
                        case 2: add_products<T, 2>(shares[d], g, w, pitch, vectors, width); break;
                        case 3: add_products<T, 3>(shares[d], g, w, pitch, vectors, width); break;
                        case 4: add_products<T, 4>(shares[d], g, w, pitch, vectors, width); break;
                        default: add_products<T, 0>(shares[d], g, w, pitch, vectors, width);
                    }
                }
                const bool saw_state = direction.reverse ? step + steps == conv.length : step == 0;
                if (conv.grad_initial.data && saw_state)
                    write_grad_initial(conv, task, taps[d], grad + (direction.reverse ? steps * pitch : 0), pitch);
            }
            write_tile(grad_x, pitch, conv.grad_x, task.batch, task.channel, task.channels, step, steps);
        }
        for (int d = 0; d < conv.directions; d++) {
            const int64_t row = (task.batch * cut.chunks + task.chunk) * conv.dim + task.channel;
            T* to = static_cast<T*>(conv.direction[d].partials) + row * (width + 1);
            for (int j = 0; j <= width; j++) {
                const int k = j == width || !conv.direction[d].reverse ? j : width - 1 - j;
                if (cut.along_time) {
                    T total = 0;
                    for (int i = 0; i < lanes<T>; i++) total += shares[d][j][i];
                    to[k] = total;
                } else {
                    for (int i = 0; i < task.channels; i++) to[i * (width + 1) + k] = shares[d][j][i];
                }
            }
        }
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
    for (int64_t index = begin; index < end; index++) {
        const int64_t batch = index / blocks, channel = index % blocks * lanes<T>;
        const int channels = int(smaller(lanes<T>, update.dim - channel));
        const int64_t row = update.rows ? update.rows[batch] : batch;
        if (row < 0) {
            clear(out, update.length * lanes<T>);
            write_tile(out, lanes<T>, update.out, batch, channel, channels, 0, update.length);
            continue;
        }
        const Taps<T> taps(direction, update.width, channel, channels, false);
        T* const x = window + slots * lanes<T>;
        read_tile(x, lanes<T>, update.x, batch, channel, channels, 0, update.length);
        if (update.positions) {
            const int64_t position = (update.positions[batch] % slots + slots) % slots;
            for (int i = 1; i <= halo; i++)
                read_tile(x - i * lanes<T>, lanes<T>, update.state, row, channel, channels, (position - i + slots) % slots, 1);
            for (int64_t i = 0; i < update.length; i++)
                write_tile(x + i * lanes<T>, lanes<T>, update.state, row, channel, channels, (position + i) % slots, 1);
        } else {
            read_tile(window, lanes<T>, update.state, row, channel, channels, 0, slots);
            write_tile(window + update.length * lanes<T>, lanes<T>, update.state, row, channel, channels, 0, slots);
        }
        const T* first = x - halo * lanes<T>;
        if (update.silu) convolve<T, Then::silu>(out, first, lanes<T>, taps, update.length, update.width);
        else convolve<T, Then::store>(out, first, lanes<T>, taps, update.length, update.width);
        write_tile(out, lanes<T>, update.out, batch, channel, channels, 0, update.length);
    }
}

}  // namespace scanlab::SCANLAB_ISA
