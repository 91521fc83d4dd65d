# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005  (Triton has no starred tuples)
"""Parts shared by the forward and the backward kernel of the short convolution.

A program holds a block of channels, and one row of them in registers for each time step. It reads the rows of its own
steps and of the width - 1 steps before and after them once, for both directions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from scanlab_kernels.gpu.math import load
from scanlab_kernels.gpu.tile import Axes

STEPS = 8  # of one program, each in registers of its own
CHANNELS = 64  # of one program of one warp: two for each thread, which loads bfloat16 best
# Wider kernels need a thread's registers for one channel and fewer steps, packed sequences for one channel.
USUAL_WIDTH, STEPS_OF_WIDE, CHANNELS_OF_FEW = 4, 2, 32


class Direction(NamedTuple):
    """Weights and output of one direction of time.

    Attributes:
        weight: (dim, width), dense.
        bias: (dim,), dense, or None.
        out: (batch, dim, length). The forward kernel writes it; the backward kernel reads its gradient here.
        sums: (batch * spans, width + 1, dim), written by the backward kernel: summed over the first axis, the gradients
            of the weight and, last, of the bias. None in the forward kernel.
    """

    weight: Tensor
    bias: Tensor | None
    out: Tensor
    sums: Tensor | None


class Sequence(NamedTuple):
    """Input of a convolution.

    Attributes:
        x: (batch, dim, before + length + after).
        before: Steps of an initial state before step 0.
        after: Steps of an initial state after the last step, for the reverse direction.
        ids: (batch, length) int32, dense: the sequence of each step in a packed batch; or None.
    """

    x: Tensor
    before: int
    after: int
    ids: Tensor | None

    @property
    def steps(self) -> Tensor:
        """Values of x from step 0 on."""
        return self.x[..., self.before :] if self.before else self.x


@triton.jit
def load_rows(base, stride, lane_at, mask, start, first, stop, COUNT: tl.constexpr):
    """Load `COUNT` rows from step `start` on; those outside of [first, stop) are zero."""
    rows = ()
    for i in tl.static_range(COUNT):
        t = start + i
        rows = rows + (load(base + t.to(tl.int64) * stride + lane_at, mask & (t >= first) & (t < stop)),)
    return rows


@triton.jit
def load_ids(base, start, length, COUNT: tl.constexpr):
    """Load the sequence ids of `COUNT` steps from `start` on; -1, as padding, outside of [0, length)."""
    ids = ()
    for i in tl.static_range(COUNT):
        t = start + i
        ids = ids + (tl.load(base + t, mask=(t >= 0) & (t < length), other=-1),)
    return ids


@triton.jit
def load_taps(direction, channel, mask, WIDTH: tl.constexpr):
    """Load the weights of all taps, and the bias or zeros."""
    taps = ()
    for k in tl.static_range(WIDTH):
        taps = taps + (load(direction.weight + channel * WIDTH + k, mask),)
    offset = tl.zeros(channel.shape, tl.float32)
    if direction.bias is not None:
        offset = load(direction.bias + channel, mask)
    return taps, offset


@triton.jit
def same_sequence(values, ids, one: tl.constexpr, other: tl.constexpr):
    """Return `values` where rows `one` and `other` belong to one sequence, else zero."""
    if ids is not None:
        values = tl.where(ids[one] == ids[other], values, 0.0)
    return values


@triton.jit
def convolve(rows, ids, taps, offset, at: tl.constexpr, WIDTH: tl.constexpr, REVERSE: tl.constexpr):
    """Return the convolution at row `at`: bias plus the sum of the taps."""
    total = offset
    for k in tl.static_range(WIDTH):
        if REVERSE:
            total += same_sequence(taps[k] * rows[at + WIDTH - 1 - k], ids, at + WIDTH - 1 - k, at)
        else:
            total += same_sequence(taps[k] * rows[at - WIDTH + 1 + k], ids, at - WIDTH + 1 + k, at)
    return total


def sequence_of(x: Tensor, ids: Tensor | None, initial_states: Tensor | None, reverse: bool) -> Sequence:
    """Return the input of a convolution, with its initial states before it or, in reverse, after it."""
    if ids is not None:
        ids = ids.contiguous()
    if initial_states is None:
        return Sequence(x, 0, 0, ids)
    states, count = initial_states.to(x.dtype), initial_states.shape[2]
    whole = torch.cat((x.mT, states.mT) if reverse else (states.mT, x.mT), 1).mT
    return Sequence(whole, 0, count, ids) if reverse else Sequence(whole, count, 0, ids)


def direction_of(
    weight: Tensor | None, bias: Tensor | None, out: Tensor | None, sums: Tensor | None = None
) -> Direction | None:
    """Return a direction as the kernels take it, or None if it has no weight."""
    if weight is None or out is None:
        return None
    return Direction(weight.contiguous(), None if bias is None else bias.contiguous(), out, sums)


def tile_of(sequence: Sequence, width: int) -> tuple[int, int]:
    """Return the steps and the channels of one program."""
    if width > USUAL_WIDTH:
        return STEPS_OF_WIDE, CHANNELS_OF_FEW
    return STEPS, CHANNELS if sequence.ids is None else CHANNELS_OF_FEW


def numbers_of(sequence: Sequence, forward: Direction | None, reverse: Direction | None, silu: bool) -> dict[str, Any]:
    """Return the numbers that both kernels take."""
    some = forward or reverse
    assert some is not None, "a convolution has a direction"
    dim, width = some.weight.shape
    steps, block = tile_of(sequence, width)
    return {
        "axes": Axes(*sequence.x.stride()),
        "forward_axes": None if forward is None else Axes(*forward.out.stride()),
        "reverse_axes": None if reverse is None else Axes(*reverse.out.stride()),
        "before": sequence.before,
        "after": sequence.after,
        "length": sequence.x.shape[2] - sequence.before - sequence.after,
        "dim": dim,
        "blocks": -(-dim // block),
        "WIDTH": width,
        "STEPS": steps,
        "BLOCK": block,
        "HAS_FORWARD": forward is not None,
        "HAS_REVERSE": reverse is not None,
        "SILU": silu,
    }
