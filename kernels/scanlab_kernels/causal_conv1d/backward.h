// Gradients of the depthwise causal convolution, on the loops and tiles of kernel.h.
#pragma once

#include "causal_conv1d/kernel.h"

namespace scanlab::SCANLAB_TARGET {

// One column's shares of the gradient of the weights, in the order of the window, and of the bias.
template <class T, int width>
void add_products(Vec<T>* sums, const T* grad, int64_t grad_stride, const T* x, int64_t stride, int64_t pitch,
                  int64_t vectors, int run_width) {
    const int count = width ? width : run_width;
    Vec<T> sum[(width ? width : max_width) + 1] = {};
    for (int64_t v = 0; v < vectors; v++) {
        const Vec<T> g = load<T>(grad + v * grad_stride);
#pragma GCC unroll 4
        for (int j = 0; j < count; j++) sum[j] += g * load<T>(x + v * stride + j * pitch);
        sum[count] += g;
    }
    for (int j = 0; j <= count; j++) sums[j] += sum[j];
}
template <class T>
void add_products_packed(Vec<T>* sums, Steps<const T> grad, Steps<const T> x, int64_t steps, int width,
                         const int32_t* ids, int64_t length, int64_t first, int64_t window_offset) {
    for (int64_t v = 0; v < steps; v++) {
        const int64_t step = first + v;
        if (ids[step] < 0) continue;
        const Vec<T> g = load<T>(grad.data + v * grad.pitch);
        for (int j = 0; j < width; j++) {
            const int64_t other = step + window_offset + j;
            if (other >= 0 && other < length && ids[other] == ids[step])
                sums[j] += g * load<T>(x.data + (v + j) * x.pitch);
        }
        sums[width] += g;
    }
}

// The gradient of the initial state, from the gradient of the sums that saw it: `grad` holds those of the
// first (in reverse: the last) width - 1 steps of the sequence, zeros beyond it.
template <class T>
void write_grad_initial(const Conv& conv, const Tiling<T>& cut, const Task& task, const Taps<T>* taps, const T* grad) {
    const int halo = conv.width - 1, pitch = cut.pitch;
    T result[max_width * max_columns * lanes<T>];
    for (int at = 0; at < halo; at++)
        for (int c = 0; c < task.channels; c++) {
            const Vec<T>* weight = taps[c / lanes<T>].weight;
            const int lane = c % lanes<T>;
            T sum = 0;
            // Slot `at` is element j of the window that begins at slot at - j.
            if (conv.direction[0].reverse)
                for (int j = at + 1; j <= halo; j++) sum += weight[j][lane] * grad[(halo + at - j) * pitch + c];
            else
                for (int j = 0; j <= at; j++) sum += weight[j][lane] * grad[(at - j) * pitch + c];
            result[at * pitch + c] = sum;
        }
    write_tile(result, pitch, conv.grad_initial, task.batch, task.channel, task.channels, 0, halo);
}

template <class T>
void write_partials(const Conv& conv, const Tiling<T>& cut, const Task& task, int d,
                    const Vec<T> (*shares)[max_width + 1]) {
    const int width = conv.width;
    const int64_t row = (task.batch * cut.chunks + task.chunk) * conv.dim + task.channel;
    T* to = static_cast<T*>(conv.direction[d].partials) + row * (width + 1);
    for (int j = 0; j <= width; j++) {
        const int k = j == width || !conv.direction[d].reverse ? j : width - 1 - j;
        if (cut.along_time) {
            to[k] = sum_of<T>(shares[0][j]);
        } else {
            for (int c = 0; c < task.channels; c++) to[c * (width + 1) + k] = shares[c / lanes<T>][j][c % lanes<T>];
        }
    }
}

template <class T>
void conv_gradients(const Conv& conv, int64_t begin, int64_t end) {
    const Tiling<T> cut(conv);
    const int width = conv.width, halo = width - 1, pitch = cut.pitch;
    alignas(64) T x_buffer[tile_size<T>], grad[tile_size<T>], sum[tile_size<T>], grad_x[tile_size<T>];
    Taps<T> taps[2][max_columns], reversed[2][max_columns];
    for (int64_t index = begin; index < end; index++) {
        const Task task(conv, cut, index);
        for (int d = 0; d < conv.directions; d++) {
            read_taps(taps[d], conv, cut, task, d);
            for (int c = 0; c < cut.columns; c++) reversed[d][c] = taps[d][c].reversed(width);
        }
        Vec<T> shares[2][max_columns][max_width + 1] = {};
        const int64_t stop = smaller(conv.length, (task.chunk + 1) * cut.chunk);
        for (int64_t step = task.chunk * cut.chunk; step < stop; step += cut.steps) {
            const int64_t steps = smaller(cut.steps, stop - step), whole = cut.whole(steps);
            // A step of x is seen by the windows of its own step and of width - 1 others. The sums take whole vectors,
            // so that these windows are those of whole vectors too.
            const int64_t seen = cut.whole(whole + halo);
            const Steps<const T> x = read_input(x_buffer, conv, cut, task, step - halo, step + seen);
            clear(grad_x, whole * pitch);
            for (int d = 0; d < conv.directions; d++) {
                const ConvDirection& direction = conv.direction[d];
                const int window_offset = direction.reverse ? 0 : -halo, own = direction.reverse ? halo : 0;
                const int64_t first = step - own;
                read_padded(grad, pitch, direction.out, task, conv.length, first, first + seen);
                if (conv.silu) {
                    convolve<T, Then::store>({sum, pitch}, x, conv, cut, task, taps[d], seen, first, window_offset);
                    for (int64_t i = 0; i < seen * pitch; i += lanes<T>) {
                        const Vec<T> a = load<T>(sum + i), s = sigmoid<T>(a);
                        store<T>(grad + i, load<T>(grad + i) * s * (T(1) + a * (T(1) - s)));
                    }
                }
                convolve<T, Then::add>({grad_x, pitch}, {grad, pitch}, conv, cut, task, reversed[d], steps, step, -own);
                for (int c = 0; c < cut.columns; c++) {
                    const Steps<const T> g{grad + own * pitch + c * lanes<T>, pitch};
                    const Steps<const T> window{x.data + own * x.pitch + c * lanes<T>, x.pitch};
                    Vec<T>* const sums = shares[d][c];
                    if (conv.ids) {
                        const int32_t* ids = conv.ids + task.batch * conv.length;
                        add_products_packed(sums, g, window, steps, width, ids, conv.length, step, window_offset);
                    } else if (width == 4) {
                        add_products<T, 4>(sums, g.data, cut.stride(pitch), window.data, cut.stride(x.pitch), x.pitch,
                                           cut.vectors(steps), width);
                    } else {
                        add_products<T, 0>(sums, g.data, cut.stride(pitch), window.data, cut.stride(x.pitch), x.pitch,
                                           cut.vectors(steps), width);
                    }
                }
                const bool saw_state = direction.reverse ? step + steps == conv.length : step == 0;
                if (conv.grad_initial.data && saw_state)
                    write_grad_initial(conv, cut, task, taps[d], grad + (direction.reverse ? steps * pitch : 0));
            }
            write_tile(grad_x, pitch, conv.grad_x, task.batch, task.channel, task.channels, step, steps);
        }
        for (int d = 0; d < conv.directions; d++) write_partials(conv, cut, task, d, shares[d]);
    }
}

}  // namespace scanlab::SCANLAB_TARGET
