"""Depthwise causal convolution along time, with an optional SiLU: whole sequences, both directions, and one step.

    out[t] = activation(bias + sum over k of weight[k] * x[t - (width - 1) + k])

In reverse it looks ahead instead of back, x[t + (width - 1) - k], with weight[width - 1] on the present step in
both: that equals reversing x along time, convolving and reversing back. float32 arithmetic, float64 for float64.

Source: Dao-AILab/causal-conv1d@0d2252d, causal_conv1d/causal_conv1d_interface.py; the semantics of the CUDA
kernels where their PyTorch references differ. Reverse and bidirectional are Vision Mamba's (arXiv 2401.09417).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab.runtime.serving import ops_for
from scanlab_kernels.checks import expect, expect_int32, wide

Activation = Literal["silu", "swish"] | None

MAX_WIDTH = 16


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    activation: Activation = None,
    reverse: bool = False,
) -> Tensor:
    """Each channel of x convolved over the time steps up to its own; in reverse, from its own on.

    x               (batch, dim, length), any strides; fastest where dim or length is dense
    weight, bias    (dim, width) and (dim,), any floating dtype; width 1 to 16
    seq_idx         (batch, length) int32: the sequence that each step belongs to. Steps of other sequences
                    count as zero; a negative index is padding, whose output is zero
    initial_states  (batch, dim, width - 1): the input before the first step (in reverse: after the last), in
                    order of time; zeros where None
    Returns the shape, dtype and order of strides of x. Differentiable in x, weight, bias and initial_states.
    Raises ProblemError, before anything is computed, where shapes, dtypes or devices do not fit.
    """
    check(x, weight, bias, activation)
    if seq_idx is not None:
        expect_int32("seq_idx", seq_idx, (x.shape[0], x.shape[2]), x)
    if initial_states is not None:
        if seq_idx is not None:
            raise ProblemError("initial_states and seq_idx are given: a packed batch has no one state to begin with.")
        expect("initial_states", initial_states, (*x.shape[:2], weight.shape[1] - 1), x)
    ops = ops_for(x)
    if ops is None:
        if seq_idx is None and initial_states is None:
            return _as_image(x, weight, bias, activation, reverse)
        return causal_conv1d_reference(
            x, weight, bias, seq_idx=seq_idx, initial_states=initial_states, activation=activation, reverse=reverse
        )
    weights = (None, None, weight, bias) if reverse else (weight, bias, None, None)
    outs: tuple[Tensor, Tensor] = ops.causal_conv1d(x, *weights, seq_idx, initial_states, activation is not None)
    return outs[reverse]


def causal_conv1d_bidirectional(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_back: Tensor,
    bias_back: Tensor | None,
    *,
    activation: Activation = None,
) -> tuple[Tensor, Tensor]:
    """Both directions of Vision Mamba in one pass over x: `causal_conv1d` ahead and in reverse, each with its weights.

    Arguments and errors as `causal_conv1d`. Returns (out, out_back), both in natural order of time.
    """
    check(x, weight, bias, activation)
    expect("weight_back", weight_back, tuple(weight.shape), x)
    if bias_back is not None:
        expect("bias_back", bias_back, (x.shape[1],), x)
    ops = ops_for(x)
    if ops is None:
        return (
            _as_image(x, weight, bias, activation, reverse=False),
            _as_image(x, weight_back, bias_back, activation, reverse=True),
        )
    outs: tuple[Tensor, Tensor] = ops.causal_conv1d(
        x, weight, bias, weight_back, bias_back, None, None, activation is not None
    )
    return outs


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The next steps of a convolution from a stored state, which is brought up to date in place.

    x                   (batch, dim) or (batch, dim, steps)
    conv_state          (batch, dim, slots), dtype of x, slots >= width - 1. It shifts: afterwards it holds the
                        last `slots` inputs, newest last
    cache_seqlens       (batch,) int32: conv_state is a circular buffer instead, and x is written from this
                        slot (modulo slots) on, after the width - 1 slots before it were read
    conv_state_indices  (batch,) int32: the row of a larger conv_state, each at most once; negative skips: the
                        output is zero and no state is touched
    Returns the shape and dtype of x. Not differentiable, as upstream: no graph is recorded.
    Raises ProblemError, before the state is touched, where shapes, dtypes or devices do not fit; IndexError
    where an index is beyond the state (on a GPU, which is not waited for, its output is NaN instead).
    """
    batch, dim = x.shape[:2]
    check(x if x.dim() == 3 else x[..., None], weight, bias, activation)
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
    ops = ops_for(x)
    if ops is not None:
        out: Tensor = ops.causal_conv1d_update(
            x, conv_state, weight, bias, cache_seqlens, conv_state_indices, activation is not None
        )
        return out
    return causal_conv1d_update_reference(
        x,
        conv_state,
        weight,
        bias,
        activation=activation,
        cache_seqlens=cache_seqlens,
        conv_state_indices=conv_state_indices,
    )


def final_states(x: Tensor, width: int, initial_states: Tensor | None = None, *, reverse: bool = False) -> Tensor:
    """What a convolution that goes on after x needs as its initial_states: the last width - 1 inputs.

    x (batch, dim, length), initial_states as in `causal_conv1d` -> (batch, dim, width - 1), dtype of x; in
    reverse the first inputs, in order of time. Differentiable.
    """
    return _padded(x, width, initial_states, reverse).narrow(-1, 0 if reverse else x.shape[-1], width - 1)


def check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
    """Raise ProblemError unless these can be convolved."""
    if x.dim() != 3:
        raise ProblemError(f"x is {tuple(x.shape)}: must be (batch, dim, length).")
    expect("x", x, x.shape, x)
    check_weights(x.shape[1], weight, bias, x)
    if activation not in (None, "silu", "swish"):
        raise ProblemError(f"activation={activation!r}: must be None, 'silu' or 'swish'.")


def check_weights(dim: int, weight: Tensor, bias: Tensor | None, like: Tensor) -> None:
    """Raise ProblemError unless these can convolve (batch, dim, length) where `like` lies."""
    if weight.dim() != 2 or not 1 <= weight.shape[1] <= MAX_WIDTH:
        raise ProblemError(f"weight is {tuple(weight.shape)}: must be (dim, width), with a width of 1 to {MAX_WIDTH}.")
    expect("weight", weight, (dim, weight.shape[1]), like)
    if bias is not None:
        expect("bias", bias, (dim,), like)


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    activation: Activation = None,
    reverse: bool = False,
) -> Tensor:
    """`causal_conv1d` in PyTorch: one multiply-add for each tap."""
    width, length = weight.shape[1], x.shape[2]
    taps = weight.to(wide(x).dtype)
    taps = taps.flip(1) if reverse else taps
    padded = _padded(wide(x), width, initial_states, reverse)
    if seq_idx is not None:
        ids = F.pad(seq_idx, (0, width - 1) if reverse else (width - 1, 0), value=-1)
    total = torch.zeros_like(padded[..., :length]) if bias is None else bias.to(taps.dtype)[:, None]
    for k in range(width):
        tap = taps[:, k, None] * padded[..., k : k + length]
        if seq_idx is not None:
            tap = torch.where((ids[:, k : k + length] == seq_idx)[:, None], tap, 0.0)
        total = total + tap
    if activation is not None:
        total = F.silu(total)
    if seq_idx is not None:
        total = torch.where((seq_idx >= 0)[:, None], total, 0.0)
    return total.to(x.dtype)


def _as_image(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, reverse: bool) -> Tensor:
    """The same, convolved by torch as an image one pixel high.

    On a CPU torch convolves dim-last images without copies, several times as fast as `conv1d` convolves the
    transposed sequence and two to three times as fast as one multiply-add for each tap.
    """
    width, length = weight.shape[1], x.shape[2]
    taps = weight.to(wide(x).dtype)[:, None, None]
    taps = taps.flip(-1) if reverse else taps
    offset = None if bias is None else bias.to(taps.dtype)
    padded = F.conv2d(wide(x)[:, :, None], taps, offset, padding=(0, width - 1), groups=len(weight))
    first = width - 1 if reverse else 0
    out = padded[:, :, 0, first : first + length]
    return (out if activation is None else F.silu(out)).to(x.dtype)


def _padded(x: Tensor, width: int, initial_states: Tensor | None, reverse: bool) -> Tensor:
    if initial_states is None:
        return F.pad(x, (0, width - 1) if reverse else (width - 1, 0))
    states = initial_states.to(x.dtype)
    return torch.cat((x, states) if reverse else (states, x), -1)


@torch.no_grad()
def causal_conv1d_update_reference(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """`causal_conv1d_update` in PyTorch: the convolution of what the state held and x."""
    if x.dim() == 2:
        return causal_conv1d_update_reference(
            x[..., None],
            conv_state,
            weight,
            bias,
            activation=activation,
            cache_seqlens=cache_seqlens,
            conv_state_indices=conv_state_indices,
        )[..., 0]
    if conv_state_indices is not None:
        live = conv_state_indices >= 0
        rows = conv_state_indices[live].long()
        state = conv_state[rows]
        out = torch.zeros_like(x)
        out[live] = causal_conv1d_update_reference(
            x[live],
            state,
            weight,
            bias,
            activation=activation,
            cache_seqlens=None if cache_seqlens is None else cache_seqlens[live],
        )
        conv_state[rows] = state
        return out
    steps, slots, before = x.shape[2], conv_state.shape[2], weight.shape[1] - 1
    if cache_seqlens is None:
        history = torch.cat((conv_state, x), -1)
        initial = history[..., slots - before : slots]
        newer = history[..., steps:]
    else:

        def slot(first: int, stop: int) -> Tensor:
            offsets = torch.arange(first, stop, device=x.device)
            return ((cache_seqlens[:, None] + offsets) % slots)[:, None].expand(-1, x.shape[1], -1)

        initial = conv_state.gather(-1, slot(-before, 0))
        kept = min(steps, slots)  # more steps than slots overwrite one another: the last ones stay
        newer = conv_state.scatter(-1, slot(steps - kept, steps), x[..., steps - kept :])
    out = causal_conv1d_reference(x, weight, bias, initial_states=initial, activation=activation)
    conv_state.copy_(newer)
    return out
