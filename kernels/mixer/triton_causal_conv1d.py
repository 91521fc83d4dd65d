# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005  (what Triton compiles has no starred tuples, and other rules for branches)
"""The short convolution on a GPU: channels side by side, a few steps of time in the registers of a thread.

A program reads the rows of its steps and the width - 1 before and after them once, and computes both directions of
them. On the way back it computes what went into SiLU again, for the steps that its inputs take part in, and walks on
through its span of time, so that few partial sums of the weights' gradients are written; torch adds these up, always
in the same order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from scanlab.kernels.triton_math import load, shrink, sigmoid
from scanlab.kernels.triton_tile import Axes, Launch

STEPS = 8  # computed at once, each in registers of its own
TURNS = 4  # of so many steps in a program of the way back
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


@triton.jit
def write(
    way,
    axes,
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
    """The outputs of one direction for the steps from `start` on; `rows` begins width - 1 steps before."""
    taps, offset = taps_of(way, channel, mask, WIDTH)
    out = way.out + entry * axes.batch + channel.to(tl.int64) * axes.dim
    for i in tl.static_range(STEPS):
        total = convolved(rows, ids, taps, offset, i + WIDTH - 1, WIDTH, REVERSE)
        if SILU:
            total = total * sigmoid(total, shrink(total))
        if ids is not None:
            total = tl.where(ids[i + WIDTH - 1] >= 0, total, 0.0)
        t = start + i
        tl.store(out + t.to(tl.int64) * axes.time, total.to(way.out.dtype.element_ty), mask=mask & (t < length))


@triton.jit
def forward_kernel(
    x,
    ids,
    ahead,
    back,
    axes,
    ahead_axes,
    back_axes,
    before,
    after,
    length,
    dim,
    blocks,
    spans,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
    BACK: tl.constexpr,
    SILU: tl.constexpr,
):
    """The outputs of a few steps of a block of channels, in the directions that are there."""
    program = tl.program_id(0)
    channel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    entry = (program // blocks // spans).to(tl.int64)
    start = program // blocks % spans * STEPS
    mask = channel < dim
    lane_at = channel.to(tl.int64) * axes.dim
    rows = rows_from(
        x + entry * axes.batch, axes.time, lane_at, mask, start - (WIDTH - 1), -before, length + after,
        STEPS + 2 * (WIDTH - 1),
    )  # fmt: skip
    names = None
    if ids is not None:
        names = ids_from(ids + entry * length, start - (WIDTH - 1), length, STEPS + 2 * (WIDTH - 1))
    if AHEAD:
        write(ahead, ahead_axes, rows, names, start, length, entry, channel, mask, STEPS, WIDTH, False, SILU)
    if BACK:
        write(back, back_axes, rows, names, start, length, entry, channel, mask, STEPS, WIDTH, True, SILU)


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


def forward(of: Sequence, ahead: Way | None, back: Way | None, silu: bool) -> Launch:
    """The launch that writes the outputs of the directions that are there."""
    arguments = _arguments(of, ahead, back, silu)
    spans = -(-arguments["length"] // arguments["STEPS"])
    return _launch(forward_kernel, arguments | {"spans": spans}, len(of.x))


def empty_sums(of: Sequence, weight: Tensor) -> Tensor:
    """What the way back writes of the sums of one direction; see `Way`."""
    dim, width = weight.shape
    return of.x.new_empty((len(of.x) * _spans(of, width), width + 1, dim), dtype=torch.float32)


def backward(of: Sequence, ahead: Way | None, back: Way | None, silu: bool) -> tuple[Launch, Tensor]:
    """The launch of the way back, and the gradient of `of.x` that it writes beside the sums of each direction."""
    grad_x = torch.empty_like(of.x)
    arguments = _arguments(of, ahead, back, silu)
    arguments |= {
        "grad_x": grad_x[..., of.before :],
        "grad_axes": Axes(*grad_x.stride()),
        "spans": _spans(of, arguments["WIDTH"]),
        "TURNS": TURNS,
    }
    return _launch(backward_kernel, arguments, len(of.x)), grad_x


def _launch(kernel: object, arguments: dict[str, Any], batch: int) -> Launch:
    return Launch(kernel, arguments["blocks"] * arguments["spans"] * batch, arguments, {"num_warps": 1})


def _tile(of: Sequence, width: int) -> tuple[int, int]:
    """The steps and channels of one program."""
    if width > USUAL_WIDTH:
        return STEPS_OF_WIDE, CHANNELS_OF_FEW
    return STEPS, CHANNELS if of.ids is None else CHANNELS_OF_FEW


def _spans(of: Sequence, width: int) -> int:
    """How many spans of time the way back has."""
    return -(-of.x.shape[2] // (_tile(of, width)[0] * TURNS))


def _arguments(of: Sequence, ahead: Way | None, back: Way | None, silu: bool) -> dict[str, Any]:
    """What both kernels take; x begins at step 0."""
    some = ahead or back
    assert some is not None, "a convolution has a direction"
    dim, width = some.weight.shape
    steps, block = _tile(of, width)
    return {
        "x": of.x[..., of.before :],
        "ids": of.ids,
        "ahead": ahead,
        "back": back,
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
