# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005  (what Triton compiles has no starred tuples)
"""What a program of the short convolution on a GPU has before it: channels side by side, rows of time in registers.

A row is one step of a block of channels; a program reads those of its steps and the width - 1 before and after them
once. What stands here is shared by both ways: `triton_causal_conv1d.py` and `triton_causal_conv1d_backward.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from scanlab_kernels.gpu.math import load
from scanlab_kernels.gpu.tile import Axes

STEPS = 8  # computed at once, each in registers of its own
CHANNELS = 64  # of one program, which is one warp: two of a thread, as bfloat16 is loaded best
USUAL_WIDTH = 4  # wider ones need the registers of a thread for one channel and fewer steps, packed ones for the former
STEPS_OF_WIDE, CHANNELS_OF_FEW = 2, 32


class Way(NamedTuple):
    """One direction of a convolution.

    weight, bias  (dim, width) and (dim,), dense
    out           (batch, dim, length): what is written, or on the way back its gradient, which is read
    sums          on the way back (batch x spans, width + 1, dim): summed over the first axis, the gradients of the
                  weight and, last, of the bias
    """

    weight: Tensor
    bias: Tensor | None
    out: Tensor
    sums: Tensor | None


class Sequence(NamedTuple):
    """The input of a convolution: steps 0 to `length`, and those given before and after them.

    x            (batch, dim, before + length + after)
    before       steps that stand before step 0
    after        steps that follow the last one
    ids          (batch, length) int32 or None, dense
    """

    x: Tensor
    before: int
    after: int
    ids: Tensor | None


@triton.jit
def rows_from(base, stride, lane_at, mask, start, first, stop, COUNT: tl.constexpr):
    """`COUNT` rows from step `start` on; zero outside of the steps from `first` to before `stop`."""
    rows = ()
    for i in tl.static_range(COUNT):
        t = start + i
        rows = rows + (load(base + t.to(tl.int64) * stride + lane_at, mask & (t >= first) & (t < stop)),)
    return rows


@triton.jit
def ids_from(base, start, length, COUNT: tl.constexpr):
    """The sequences that `COUNT` steps from `start` on belong to; none, as padding, where there is no step."""
    ids = ()
    for i in tl.static_range(COUNT):
        t = start + i
        ids = ids + (tl.load(base + t, mask=(t >= 0) & (t < length), other=-1),)
    return ids


@triton.jit
def taps_of(way, channel, mask, WIDTH: tl.constexpr):
    """The weights of each tap, and the bias or zeros."""
    taps = ()
    for k in tl.static_range(WIDTH):
        taps = taps + (load(way.weight + channel * WIDTH + k, mask),)
    offset = tl.zeros(channel.shape, tl.float32)
    if way.bias is not None:
        offset = load(way.bias + channel, mask)
    return taps, offset


@triton.jit
def together(values, ids, one: tl.constexpr, other: tl.constexpr):
    """`values` where the rows number `one` and `other` are of one sequence, else zero."""
    if ids is not None:
        values = tl.where(ids[one] == ids[other], values, 0.0)
    return values


@triton.jit
def convolved(rows, ids, taps, offset, at: tl.constexpr, WIDTH: tl.constexpr, REVERSE: tl.constexpr):
    """The sum of offset and taps at row number `at`."""
    total = offset
    for k in tl.static_range(WIDTH):
        if REVERSE:
            total += together(taps[k] * rows[at + WIDTH - 1 - k], ids, at + WIDTH - 1 - k, at)
        else:
            total += together(taps[k] * rows[at - WIDTH + 1 + k], ids, at - WIDTH + 1 + k, at)
    return total


def sequence(x: Tensor, ids: Tensor | None, initial_states: Tensor | None, reverse: bool) -> Sequence:
    """The input of a convolution, with its initial states before it, or in reverse after it."""
    if ids is not None:
        ids = ids.contiguous()
    if initial_states is None:
        return Sequence(x, 0, 0, ids)
    states, given = initial_states.to(x.dtype), initial_states.shape[2]
    whole = torch.cat((x.mT, states.mT) if reverse else (states.mT, x.mT), 1).mT
    return Sequence(whole, 0, given, ids) if reverse else Sequence(whole, given, 0, ids)


def way(weight: Tensor | None, bias: Tensor | None, out: Tensor | None, sums: Tensor | None = None) -> Way | None:
    """A direction as the kernels take it, or None where it has no weight."""
    if weight is None or out is None:
        return None
    return Way(weight.contiguous(), None if bias is None else bias.contiguous(), out, sums)


def tile_of(of: Sequence, width: int) -> tuple[int, int]:
    """The steps and channels of one program."""
    if width > USUAL_WIDTH:
        return STEPS_OF_WIDE, CHANNELS_OF_FEW
    return STEPS, CHANNELS if of.ids is None else CHANNELS_OF_FEW


def numbers_of(of: Sequence, ahead: Way | None, back: Way | None, silu: bool) -> dict[str, Any]:
    """The numbers that both kernels take."""
    some = ahead or back
    assert some is not None, "a convolution has a direction"
    dim, width = some.weight.shape
    steps, block = tile_of(of, width)
    return {
        "axes": Axes(*of.x.stride()),
        "ahead_axes": None if ahead is None else Axes(*ahead.out.stride()),
        "back_axes": None if back is None else Axes(*back.out.stride()),
        "before": of.before,
        "after": of.after,
        "length": of.x.shape[2] - of.before - of.after,
        "dim": dim,
        "blocks": -(-dim // block),
        "WIDTH": width,
        "STEPS": steps,
        "BLOCK": block,
        "AHEAD": ahead is not None,
        "BACK": back is not None,
        "SILU": silu,
    }
