// Convolutions of torch's tensors, checked and described to the kernels.
#pragma once

#include "causal_conv1d/native.h"
#include "cpu/library.h"

namespace scanlab::mixer {

// A convolution, and the tensors that keep its memory alive.
struct ConvCall {
    Conv conv;
    Tensor ids, weights[2], biases[2];

    ConvCall(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& weight_reverse,
             const Tensor& bias_reverse, const Tensor& seq_idx, const Tensor& initial, bool silu) {
        require(x.dim() == 3, "x: must be (batch, dim, length)");
        expect("x", x, x.sizes());
        require(weight || weight_reverse, "a convolution needs a weight");
        const Tensor& either = weight ? weight : weight_reverse;
        require(either.dim() == 2, "weight: must be (dim, width)");
        const int64_t batch = x.size(0), dim = x.size(1), length = x.size(2), width = either.size(1);
        require(width >= 1 && width <= max_width, "width ", width, ": must be 1..", max_width);
        conv.batch = batch, conv.dim = dim, conv.length = length, conv.width = int(width);
        conv.silu = silu;
        conv.wide = is_wide({&x});
        conv.directions = 0;
        if (weight) add(weight, bias, false);
        if (weight_reverse) add(weight_reverse, bias_reverse, true);
        conv.x = matrix(x);
        if (seq_idx) {
            expect("seq_idx", seq_idx, {batch, length}, Dtype::int32);
            ids = dense(seq_idx, Dtype::int32);
            conv.ids = ids.data<int32_t>();
        }
        if (initial) {
            expect("initial_states", initial, {batch, dim, width - 1});
            require(conv.directions == 1 && !seq_idx, "initial_states: for one direction without seq_idx only");
            conv.initial = matrix(initial);
        }
    }

    void add(const Tensor& weight, const Tensor& bias, bool reverse) {
        const int d = conv.directions++;
        expect("weight", weight, {conv.dim, conv.width});
        weights[d] = dense(weight, arithmetic(conv.wide));
        biases[d] = dense("bias", bias, {conv.dim}, arithmetic(conv.wide));
        conv.direction[d].reverse = reverse;
        conv.direction[d].weight = weights[d].data();
        conv.direction[d].bias = biases[d].data();
    }

    int64_t elements() const { return conv.batch * conv.dim * conv.length * conv.directions; }
};

// A decoding step whose arguments were checked. The constructor raises before anything is written; `run` writes the
// state and `out`. Inputs within the memory of the state were copied before.
struct ConvUpdateCall {
    ConvUpdateCall(const Tensor& x, const Tensor& state, const Tensor& weight, const Tensor& bias,
                   const Tensor& positions, const Tensor& rows, const Tensor& out, bool silu);
    void run();

private:
    ConvUpdate update;
    Tensor state, x, weights, biases, positions, rows;
};

}  // namespace scanlab::mixer
