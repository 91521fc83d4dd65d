"""The causal convolution in PyTorch, differentiable: the reference."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab_kernels.causal_conv1d.arguments import padded
from scanlab_kernels.causal_conv1d.op import call
from scanlab_kernels.checks import expect_distinct, expect_no_overlap, wide
from scanlab_kernels.implementations import TORCH


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
    """Return x (batch, dim, length) convolved forward and in reverse; empty if a direction has no weight."""

    def direction(weight: Tensor | None, bias: Tensor | None, reverse: bool) -> Tensor:
        if weight is None:
            return x.new_empty(0)
        if seq_idx is None and initial_states is None and x.numel():
            return as_image(x, weight, bias, silu, reverse)
        return by_taps(x, weight, bias, seq_idx, initial_states, silu, reverse)

    return direction(weight, bias, False), direction(weight_reverse, bias_reverse, True)


def by_taps(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
    reverse: bool,
) -> Tensor:
    """Convolve with one multiply-add for each tap."""
    width, length = weight.shape[1], x.shape[2]
    taps = weight.to(wide(x).dtype)
    taps = taps.flip(1) if reverse else taps
    inputs = padded(wide(x), width, initial_states, reverse)
    if seq_idx is not None:
        ids = F.pad(seq_idx, (0, width - 1) if reverse else (width - 1, 0), value=-1)
    total = torch.zeros_like(inputs[..., :length]) if bias is None else bias.to(taps.dtype)[:, None]
    for k in range(width):
        tap = taps[:, k, None] * inputs[..., k : k + length]
        if seq_idx is not None:
            tap = torch.where((ids[:, k : k + length] == seq_idx)[:, None], tap, 0.0)
        total = total + tap
    if silu:
        total = F.silu(total)
    if seq_idx is not None:
        total = torch.where((seq_idx >= 0)[:, None], total, 0.0)
    return total.to(x.dtype)


def as_image(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """Convolve by torch, as an image one pixel high.

    On a CPU torch convolves dim-last images without copies, several times as fast as `conv1d` convolves the
    transposed sequence and two to three times as fast as one multiply-add for each tap.
    """
    width, length = weight.shape[1], x.shape[2]
    taps = weight.to(wide(x).dtype)[:, None, None]
    taps = taps.flip(-1) if reverse else taps
    offset = None if bias is None else bias.to(taps.dtype)
    image = F.conv2d(wide(x)[:, :, None], taps, offset, padding=(0, width - 1), groups=len(weight))
    first = width - 1 if reverse else 0
    out = image[:, :, 0, first : first + length]
    return (F.silu(out) if silu else out).to(x.dtype)


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
    silu: bool,
) -> Tensor:
    """Return the next steps of a convolution, which are those of the state followed by x; update the state."""
    if x.dim() == 2:
        one = x[..., None]
        return causal_conv1d_update(one, conv_state, weight, bias, cache_seqlens, conv_state_indices, silu)[..., 0]
    if conv_state_indices is not None:
        live = conv_state_indices >= 0
        rows = conv_state_indices[live].long()
        expect_no_overlap("conv_state", conv_state)
        expect_distinct("conv_state_indices", rows)
        state = conv_state[rows]
        out = torch.zeros_like(x)
        positions = None if cache_seqlens is None else cache_seqlens[live]
        out[live] = causal_conv1d_update(x[live], state, weight, bias, positions, None, silu)
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
    out = by_taps(x, weight, bias, None, initial, silu, reverse=False)
    conv_state.copy_(newer)
    return out


backend = TORCH.backend("causal_conv1d", call, Path(__file__).parent, "torch.py")
