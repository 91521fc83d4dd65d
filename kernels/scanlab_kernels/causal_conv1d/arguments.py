"""Depthwise causal convolution along time, with an optional SiLU: whole sequences, both directions, and one step.

    out[t] = activation(bias + sum over k of weight[k] * x[t - (width - 1) + k])

In reverse it reads the steps ahead, x[t + (width - 1) - k], with weight[width - 1] on the present step in both: that
equals reversing x along time, convolving, and reversing the result. float32 arithmetic, float64 for float64.

Source: Dao-AILab/causal-conv1d@0d2252d, causal_conv1d/causal_conv1d_interface.py; the semantics of the CUDA kernels
where their PyTorch references differ. Reverse and bidirectional are Vision Mamba's (arXiv 2401.09417).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab_kernels.checks import expect, expect_int32

Activation = Literal["silu", "swish"] | None

MAX_WIDTH = 16


def check_activation(activation: Activation) -> None:
    """Raise ProblemError unless `activation` is known."""
    if activation not in (None, "silu", "swish"):
        raise ProblemError(f"activation={activation!r}: must be None, 'silu' or 'swish'.")


def check_inputs(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    weight_reverse: Tensor | None,
    bias_reverse: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
) -> None:
    """Raise ProblemError unless x can be convolved in each direction that has a weight, and one has."""
    first, first_bias = (weight, bias) if weight is not None else (weight_reverse, bias_reverse)
    if first is None:
        raise ProblemError("weight and weight_reverse are None: give one of them.")
    check(x, first, first_bias)
    if weight is not None and weight_reverse is not None:
        expect("weight_reverse", weight_reverse, tuple(weight.shape), x)
        if bias_reverse is not None:
            expect("bias_reverse", bias_reverse, (x.shape[1],), x)
    check_sequence(x, first, seq_idx, initial_states)


def check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ProblemError unless these can be convolved."""
    if x.dim() != 3:
        raise ProblemError(f"x is {tuple(x.shape)}: must be (batch, dim, length).")
    expect("x", x, x.shape, x)
    check_weights(x.shape[1], weight, bias, x)


def check_weights(dim: int, weight: Tensor, bias: Tensor | None, like: Tensor) -> None:
    """Raise ProblemError unless these can convolve (batch, dim, length) on the device of `like`."""
    if weight.dim() != 2 or not 1 <= weight.shape[1] <= MAX_WIDTH:
        raise ProblemError(f"weight is {tuple(weight.shape)}: must be (dim, width), with a width of 1 to {MAX_WIDTH}.")
    expect("weight", weight, (dim, weight.shape[1]), like)
    if bias is not None:
        expect("bias", bias, (dim,), like)


def check_sequence(x: Tensor, weight: Tensor, seq_idx: Tensor | None, initial_states: Tensor | None) -> None:
    """Raise ProblemError unless these describe the sequences and the states of x, which has passed `check`."""
    if seq_idx is not None:
        expect_int32("seq_idx", seq_idx, (x.shape[0], x.shape[2]), x)
    if initial_states is not None:
        if seq_idx is not None:
            raise ProblemError("initial_states and seq_idx are given: a packed batch has no one state to begin with.")
        expect("initial_states", initial_states, (*x.shape[:2], weight.shape[1] - 1), x)


def check_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> None:
    """Raise ProblemError unless x can be convolved from this state."""
    batch, dim = x.shape[:2]
    check_activation(activation)
    check(x if x.dim() == 3 else x[..., None], weight, bias)
    slots = conv_state.shape[-1]
    rows = batch if conv_state_indices is None else conv_state.shape[0]
    expect("conv_state", conv_state, (rows, dim, slots), x)
    if conv_state.dtype != x.dtype:
        raise ProblemError(f"conv_state is {conv_state.dtype} and x {x.dtype}: must be the same.")
    if slots < max(weight.shape[1] - 1, cache_seqlens is not None):
        raise ProblemError(f"conv_state has {slots} slots: a weight of width {weight.shape[1]} needs more.")
    for name, indices in (("cache_seqlens", cache_seqlens), ("conv_state_indices", conv_state_indices)):
        if indices is not None:
            expect_int32(name, indices, (batch,), x)


def final_states(x: Tensor, width: int, initial_states: Tensor | None, seq_idx: Tensor | None = None) -> Tensor:
    """Return the initial_states of a convolution that continues after x: the last width - 1 inputs.

    Of several sequences in x it is the last that continues: steps of others count as zero, and so do the initial
    states unless all of x is one sequence. Differentiable.

    Shape:
        x (batch, dim, length), initial_states and seq_idx as in `causal_conv1d` -> (batch, dim, width - 1), dtype of x.
    """
    if seq_idx is not None and x.shape[-1]:
        last = seq_idx[:, -1:]
        others = (seq_idx != last) | (last < 0)
        x = x.masked_fill(others[:, None], 0)
        if initial_states is not None:
            initial_states = initial_states.masked_fill(others.any(1)[:, None, None], 0)
    return padded(x, width, initial_states, reverse=False)[..., x.shape[-1] :]


def padded(x: Tensor, width: int, initial_states: Tensor | None, reverse: bool) -> Tensor:
    """Return x (batch, dim, length) with the width - 1 inputs before it; in reverse, after it."""
    if initial_states is None:
        return F.pad(x, (0, width - 1) if reverse else (width - 1, 0))
    states = initial_states.to(x.dtype)
    return torch.cat((x, states) if reverse else (states, x), -1)
