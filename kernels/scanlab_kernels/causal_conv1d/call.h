// Convolutions of torch's tensors, checked and described to the kernels.
#pragma once

#include "causal_conv1d/native.h"
#include "cpu/library.h"

namespace scanlab::mixer {

// A convolution, and the tensors that keep its memory alive.
struct ConvCall {
    Conv conv;
    Tensor ids, weights[2], biases[2];

    ConvCall(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
             const OptionalTensor& weight_reverse, const OptionalTensor& bias_reverse, const OptionalTensor& seq_idx,
             const OptionalTensor& initial, bool silu) {
        TORCH_CHECK_VALUE(x.dim() == 3, "x: must be (batch, dim, length)");
        expect("x", x, x.sizes());
        TORCH_CHECK_VALUE(weight || weight_reverse, "a convolution needs a weight");
        const int64_t batch = x.size(0), dim = x.size(1), length = x.size(2),
                      width = (weight ? *weight : *weight_reverse).size(-1);
        TORCH_CHECK_VALUE(width >= 1 && width <= max_width, "width ", width, ": must be 1..", max_width);
        conv.batch = batch, conv.dim = dim, conv.length = length, conv.width = int(width);
        conv.silu = silu;
        conv.wide = is_wide({&x});
        conv.directions = 0;
        add(weight, bias, false);
        add(weight_reverse, bias_reverse, true);
        conv.x = matrix(x);
        if (seq_idx) {
            expect("seq_idx", *seq_idx, {batch, length}, at::kInt);
            ids = seq_idx->contiguous();
            conv.ids = ids.const_data_ptr<int32_t>();
        }
        if (initial) {
            expect("initial_states", *initial, {batch, dim, width - 1});
            TORCH_CHECK_VALUE(conv.directions == 1 && !seq_idx,
                              "initial_states: for one direction without seq_idx only");
            conv.initial = matrix(*initial);
        }
    }

    void add(const OptionalTensor& weight, const OptionalTensor& bias, bool reverse) {
        if (!weight) return;
        const int d = conv.directions++;
        expect("weight", *weight, {conv.dim, conv.width});
        weights[d] = dense(*weight, arithmetic(conv.wide));
        if (bias) {
            expect("bias", *bias, {conv.dim});
            biases[d] = dense(*bias, arithmetic(conv.wide));
        }
        conv.direction[d].reverse = reverse;
        conv.direction[d].weight = pointer(weights[d]);
        conv.direction[d].bias = pointer(biases[d]);
    }

    int64_t elements() const { return conv.batch * conv.dim * conv.length * conv.directions; }
};

// A decoding step whose arguments were checked. The constructor raises before anything is written; `run` writes the
// state and `out`. What is read and lies in the memory of the state was copied before.
struct ConvUpdateCall {
    ConvUpdateCall(const Tensor& x, const Tensor& state, const Tensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& positions, const OptionalTensor& rows, const Tensor& out, bool silu);
    void run();

private:
    ConvUpdate update;
    Tensor state, x, weights, biases, positions, rows;
};

}  // namespace scanlab::mixer
