// Residual add with RMSNorm or LayerNorm, forward and backward; a row at a time, in the arithmetic type.
#pragma once

#include "add_norm/native.h"
#include "cpu/strided.h"

namespace scanlab::SCANLAB_TARGET {

using mixer::Norm;
using mixer::norm_rows;

template <class T>
void read_row(T* to, const Matrix& from, int64_t row, int64_t dim) {
    with_storage(from.type, [&](auto storage) {
        using S = typename decltype(storage)::type;
        read_run(to, static_cast<const S*>(from.data) + row * from.row, 1, dim);
    });
}
// Adds a row to the one that is there.
template <class T>
void add_row(T* to, const Matrix& from, int64_t row, int64_t dim) {
    with_storage(from.type, [&](auto storage) {
        using S = typename decltype(storage)::type;
        const S* first = static_cast<const S*>(from.data) + row * from.row;
        if constexpr (vectors<T, S>) {
            for (int64_t i = 0; i < dim; i += lanes<T>)
                store<T>(to + i, load<T>(to + i) + load_some<T>(first + i, int(smaller(dim - i, lanes<T>))));
        } else {
            for (int64_t i = 0; i < dim; i++) to[i] += number<T>(first + i);
        }
    });
}
template <class T>
void write_row(const T* from, const Matrix& to, int64_t row, int64_t dim) {
    with_storage(to.type, [&](auto storage) {
        using S = typename decltype(storage)::type;
        write_run(static_cast<S*>(to.data) + row * to.row, from, 1, dim);
    });
}

// The statistics of a row, which (x - mean) * scale normalises. The row ends in zeros up to a whole vector.
template <class T>
struct Statistics {
    T mean = 0, scale;

    Statistics(const Norm& norm, const T* row) {
        const int64_t dim = norm.dim;
        Vec<T> sum{};
        if (norm.centred) {
            for (int64_t i = 0; i < dim; i += lanes<T>) sum += load<T>(row + i);
            mean = sum_of<T>(sum) / T(dim);
        }
        const int64_t whole = dim / lanes<T> * lanes<T>;
        Vec<T> squares{};
        for (int64_t i = 0; i < whole; i += lanes<T>) {
            const Vec<T> x = load<T>(row + i) - mean;
            squares += x * x;
        }
        if (whole < dim) {  // the zeros after the row are not part of it
            const Vec<T> x = masked<T>(load<T>(row + whole) - mean, first_lanes<T>(int(dim - whole)));
            squares += x * x;
        }
        scale = T(1) / T(__builtin_sqrt(sum_of<T>(squares) / T(dim) + T(norm.eps)));
    }
};

template <class T>
size_t norm_workspace(const Norm& norm) {
    return 4 * whole_vectors<T>(norm.dim) * sizeof(T);
}

template <class T>
void norm_forward(const Norm& norm, int64_t begin, int64_t end, void* workspace) {
    const int64_t dim = norm.dim, padded = whole_vectors<T>(dim);
    T* const total = static_cast<T*>(workspace);
    T* const other = total + padded;
    T* const weight = other + padded;
    T* const bias = weight + padded;
    read_row(weight, norm.weight, 0, dim);
    if (norm.bias.data) read_row(bias, norm.bias, 0, dim);
    else clear(bias, padded);
    for (int64_t row = begin * norm_rows; row < smaller(end * norm_rows, norm.rows); row++) {
        read_row(total, norm.hidden, row, dim);
        if (norm.residual.data) add_row(total, norm.residual, row, dim);
        write_row(total, norm.total, row, dim);
        const Statistics<T> of(norm, total);
        for (int64_t i = 0; i < dim; i += lanes<T>)
            store<T>(other + i, (load<T>(total + i) - of.mean) * of.scale * load<T>(weight + i) + load<T>(bias + i));
        write_row(other, norm.out, row, dim);
    }
}

// With n the normalised row and g = grad_out * weight: grad = scale (g - mean(g) - n mean(g n)) + grad_total,
// the first mean for LayerNorm only. Each g is rounded once, so that equal ones cancel.
template <class T>
void norm_gradients(const Norm& norm, int64_t begin, int64_t end, void* workspace) {
    const int64_t dim = norm.dim, padded = whole_vectors<T>(dim);
    T* const total = static_cast<T*>(workspace);
    T* const grad_out = total + padded;
    T* const grad = grad_out + padded;
    T* const weight = grad + padded;
    read_row(weight, norm.weight, 0, dim);
    for (int64_t task = begin; task < end; task++) {
        T* const grad_weight = static_cast<T*>(norm.partials) + task * 2 * dim;
        T* const grad_bias = grad_weight + dim;
        clear(grad_weight, 2 * dim);
        for (int64_t row = task * norm_rows; row < smaller((task + 1) * norm_rows, norm.rows); row++) {
            read_row(total, norm.total, row, dim);
            read_row(grad_out, norm.grad_out, row, dim);
            const Statistics<T> of(norm, total);
            Vec<T> sum{}, products{};
            for (int64_t i = 0; i < dim; i += lanes<T>) {
                const int count = int(smaller(dim - i, lanes<T>));
                const Vec<T> n = (load<T>(total + i) - of.mean) * of.scale, go = load<T>(grad_out + i);
                const Vec<T> g = go * load<T>(weight + i);
                store<T>(grad_out + i, g);
                store_some<T>(grad_weight + i, load_some<T>(grad_weight + i, count) + go * n, count);
                store_some<T>(grad_bias + i, load_some<T>(grad_bias + i, count) + go, count);
                sum += g;
                products += g * n;
            }
            const T mean = norm.centred ? sum_of<T>(sum) / T(dim) : T(0), along = sum_of<T>(products) / T(dim);
            if (norm.grad_total.data) read_row(grad, norm.grad_total, row, dim);
            else clear(grad, padded);
            for (int64_t i = 0; i < dim; i += lanes<T>) {
                const Vec<T> n = (load<T>(total + i) - of.mean) * of.scale;
                store<T>(grad + i, load<T>(grad + i) + (load<T>(grad_out + i) - mean - n * along) * of.scale);
            }
            write_row(grad, norm.grad, row, dim);
        }
    }
}

}  // namespace scanlab::SCANLAB_TARGET
