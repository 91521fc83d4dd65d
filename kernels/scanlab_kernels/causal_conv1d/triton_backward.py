# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005  (what Triton compiles has no starred tuples)
"""The way back of the short convolution on a GPU: spans of time, each of a few turns over the steps in registers.

What went into SiLU is computed again, for the steps that the inputs of a turn take part in. A program walks on through
its span, so that few partial sums of the weights' gradients are written; torch adds these up, always in the same order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scanlab_kernels.causal_conv1d.triton_tile import (
    Sequence,
    Way,
    convolved,
    ids_from,
    numbers_of,
    rows_from,
    taps_of,
    tile_of,
    together,
)
from scanlab_kernels.gpu.launch_cache import Launch
from scanlab_kernels.gpu.math import load, shrink, sigmoid
from scanlab_kernels.gpu.tile import Axes

TURNS = 4  # of the steps of one program


@triton.jit
def turn_back(
    way,
    axes,
    sums,
    total,
    rows,
    ids,
    start,
    length,
    entry,
    channel,
    mask,
    STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
    REVERSE: tl.constexpr,
    SILU: tl.constexpr,
):
    """`sums` and `total`, a tuple of the gradients of the inputs, with the share of one direction and STEPS steps.

    `rows` begins width - 1 steps before `start`, as above. The outputs that an input takes part in are, ahead, those
    of its step and the width - 1 after it, and in reverse before it.
    """
    taps, offset = taps_of(way, channel, mask, WIDTH)
    base = way.out + entry * axes.batch + channel.to(tl.int64) * axes.dim
    inner = ()  # the gradients of what goes into SiLU; the first is that of row number `FIRST`
    FIRST: tl.constexpr = 0 if REVERSE else WIDTH - 1
    for i in tl.static_range(STEPS + WIDTH - 1):
        t = start - (WIDTH - 1) + FIRST + i
        there = (t >= 0) & (t < length)
        g = load(base + t.to(tl.int64) * axes.time, mask & there)
        if SILU:
            y = convolved(rows, ids, taps, offset, FIRST + i, WIDTH, REVERSE)
            open = sigmoid(y, shrink(y))
            g = tl.where(there, g * (open * (1.0 + y * (1.0 - open))), 0.0)
        if ids is not None:
            g = tl.where(ids[FIRST + i] >= 0, g, 0.0)
        inner = inner + (g,)
    OWN: tl.constexpr = WIDTH - 1  # the row of the first step
    gradients = ()
    for i in tl.static_range(STEPS):
        gradient = total[i]
        for k in tl.static_range(WIDTH):
            if REVERSE:
                gradient += together(taps[k] * inner[i + k], ids, i + k, OWN + i)
            else:
                gradient += together(taps[k] * inner[i + OWN - k], ids, i + 2 * OWN - k, OWN + i)
        gradients = gradients + (gradient,)
    added = ()
    for k in tl.static_range(WIDTH):
        share = sums[k]
        for i in tl.static_range(STEPS):
            if REVERSE:
                share += together(inner[OWN + i] * rows[i + 2 * OWN - k], ids, i + 2 * OWN - k, OWN + i)
            else:
                share += together(inner[i] * rows[i + k], ids, i + k, OWN + i)
        added = added + (share,)
    share = sums[WIDTH]
    for i in tl.static_range(STEPS):
        share += inner[OWN - FIRST + i]
    return added + (share,), gradients


@triton.jit
def zeros(channel, COUNT: tl.constexpr):
    """A tuple of zeros for every channel."""
    values = ()
    for _ in tl.static_range(COUNT):
        values = values + (tl.zeros(channel.shape, tl.float32),)
    return values


@triton.jit
def put_down(sums, way, place, dim, channel, mask, COUNT: tl.constexpr):
    """Write the partial sums of one direction."""
    for k in tl.static_range(COUNT):
        tl.store(way.sums + (place * COUNT + k) * dim + channel, sums[k], mask=mask)


@triton.jit
def backward_kernel(
    x,
    grad_x,
    ids,
    ahead,
    back,
    axes,
    ahead_axes,
    back_axes,
    grad_axes,
    before,
    after,
    length,
    dim,
    blocks,
    spans,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    TURNS: tl.constexpr,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
    BACK: tl.constexpr,
    SILU: tl.constexpr,
):
    """The gradients of the inputs of a span of steps, and its share of those of weights and biases."""
    program = tl.program_id(0)
    channel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    entry = (program // blocks // spans).to(tl.int64)
    first = program // blocks % spans * (STEPS * TURNS) - before
    mask = channel < dim
    lane_at = channel.to(tl.int64) * axes.dim
    lane_to = grad_x + entry * grad_axes.batch + channel.to(tl.int64) * grad_axes.dim
    stop = length + after
    sums = zeros(channel, WIDTH + 1)
    sums_back = zeros(channel, WIDTH + 1)
    for turn in tl.range(0, tl.minimum(tl.cdiv(stop - first, STEPS), TURNS)):
        start = first + turn * STEPS
        rows = rows_from(
            x + entry * axes.batch, axes.time, lane_at, mask, start - (WIDTH - 1), -before, stop,
            STEPS + 2 * (WIDTH - 1),
        )  # fmt: skip
        names = None
        if ids is not None:
            names = ids_from(ids + entry * length, start - (WIDTH - 1), length, STEPS + 2 * (WIDTH - 1))
        total = zeros(channel, STEPS)
        if AHEAD:
            sums, total = turn_back(
                ahead,
                ahead_axes,
                sums,
                total,
                rows,
                names,
                start,
                length,
                entry,
                channel,
                mask,
                STEPS,
                WIDTH,
                False,
                SILU,
            )
        if BACK:
            sums_back, total = turn_back(
                back,
                back_axes,
                sums_back,
                total,
                rows,
                names,
                start,
                length,
                entry,
                channel,
                mask,
                STEPS,
                WIDTH,
                True,
                SILU,
            )
        for i in tl.static_range(STEPS):
            t = start + i
            to = lane_to + t.to(tl.int64) * grad_axes.time
            tl.store(to, total[i].to(grad_x.dtype.element_ty), mask=mask & (t < stop))
    place = entry * spans + program // blocks % spans
    if AHEAD:
        put_down(sums, ahead, place, dim, channel, mask, WIDTH + 1)
    if BACK:
        put_down(sums_back, back, place, dim, channel, mask, WIDTH + 1)


def empty_sums(of: Sequence, weight: Tensor) -> Tensor:
    """What the way back writes of the sums of one direction; see `Way`."""
    dim, width = weight.shape
    return of.x.new_empty((len(of.x) * _spans(of, width), width + 1, dim), dtype=torch.float32)


def backward(of: Sequence, ahead: Way | None, back: Way | None, silu: bool) -> tuple[Launch, Tensor]:
    """The launch of the way back, and the gradient of `of.x` that it writes beside the sums of each direction."""
    grad_x = torch.empty_like(of.x)
    tensors = {"x": of.x[..., of.before :], "grad_x": grad_x[..., of.before :], "ids": of.ids}
    numbers = numbers_of(of, ahead, back, silu)
    numbers |= {"grad_axes": Axes(*grad_x.stride()), "spans": _spans(of, numbers["WIDTH"]), "TURNS": TURNS}
    programs = numbers["blocks"] * numbers["spans"] * len(of.x)
    ways = {"ahead": ahead, "back": back}
    return Launch(backward_kernel, programs, tensors | ways, numbers, {"num_warps": 1}), grad_x


def _spans(of: Sequence, width: int) -> int:
    """How many spans of time the way back has."""
    return -(-of.x.shape[2] // (tile_of(of, width)[0] * TURNS))
