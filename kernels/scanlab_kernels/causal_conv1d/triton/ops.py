"""Torch ops of the short convolution, with the arguments of the native ones."""

from __future__ import annotations

import torch
from torch import Tensor

from scanlab_kernels.causal_conv1d.registration import (
    empty_gradients,
    empty_outputs,
    empty_step,
    gradients,
    keep_inputs,
)
from scanlab_kernels.causal_conv1d.triton import backward, forward, update
from scanlab_kernels.causal_conv1d.triton.tile import direction_of, sequence_of
from scanlab_kernels.checks import apart_from, expect_no_overlap
from scanlab_kernels.gpu.registration import NO_SECOND_DERIVATIVES, changed, define


def causal_conv1d(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    weight_reverse: Tensor | None,
    bias_reverse: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Return the convolutions along time and against it, of those whose weight is given."""
    outs = empty_outputs(x, weight, bias, weight_reverse)
    sequence = sequence_of(x, seq_idx, initial_states, reverse=weight is None)
    forward.run(
        sequence, direction_of(weight, bias, outs[0]), direction_of(weight_reverse, bias_reverse, outs[1]), silu
    )
    return outs


def causal_conv1d_backward(
    grad: Tensor | None,
    grad_reverse: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    weight_reverse: Tensor | None,
    bias_reverse: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
) -> tuple[Tensor, ...]:
    """Return the gradients of the convolution; those of the weights are summed over batch and time."""
    sequence = sequence_of(x, seq_idx, initial_states, reverse=weight is None)
    sums, sums_reverse = (backward.empty_sums(sequence, each) for each in (weight, weight_reverse))
    grad_x = backward.run(
        sequence,
        direction_of(weight, bias, grad, sums),
        direction_of(weight_reverse, bias_reverse, grad_reverse, sums_reverse),
        silu,
    )
    found = empty_gradients(
        grad, grad_reverse, x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial_states, silu
    )
    for partial, grad_weight, grad_bias in ((sums, found[1], found[2]), (sums_reverse, found[3], found[4])):
        if partial is not None:
            total = partial.sum(0)
            grad_weight.copy_(total[:-1].T)
            if grad_bias.numel():
                grad_bias.copy_(total[-1])
    if initial_states is None:
        return (grad_x, *found[1:])
    found[0].copy_(grad_x.narrow(2, sequence.before, x.shape[2]))
    found[5].copy_(grad_x[..., : sequence.before] if sequence.before else grad_x[..., x.shape[2] :])
    return found


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
    silu: bool,
) -> Tensor:
    """Return the next steps of a convolution, and update its state in place."""
    expect_no_overlap("conv_state", conv_state)
    x, weight, bias = apart_from(conv_state, x), apart_from(conv_state, weight), apart_from(conv_state, bias)
    out = torch.empty_like(x)
    update.run(x, conv_state, weight, bias, cache_seqlens, conv_state_indices, silu, out)
    changed(conv_state)
    return out


CONV = (
    "Tensor x, Tensor? weight, Tensor? bias, Tensor? weight_reverse, Tensor? bias_reverse, Tensor? seq_idx,"
    " Tensor? initial_states, bool silu"
)
define(
    f"scanlab_mixer_triton::causal_conv1d({CONV}) -> (Tensor, Tensor)",
    causal_conv1d,
    empty_outputs,
    keep=keep_inputs,
    gradients=gradients(lambda *given: torch.ops.scanlab_mixer_triton.causal_conv1d_backward(*given)),
)
define(
    f"scanlab_mixer_triton::causal_conv1d_backward(Tensor? grad, Tensor? grad_reverse, {CONV})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    causal_conv1d_backward,
    empty_gradients,
    refuses=NO_SECOND_DERIVATIVES,
)
define(
    "scanlab_mixer_triton::causal_conv1d_update(Tensor x, Tensor(a!) conv_state, Tensor weight, Tensor? bias,"
    " Tensor? cache_seqlens, Tensor? conv_state_indices, bool silu) -> Tensor",
    causal_conv1d_update,
    empty_step,
)
