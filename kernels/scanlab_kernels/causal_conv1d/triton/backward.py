# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005  (Triton has no starred tuples)
"""Backward kernel of the short convolution.

A program walks through a span of time a few steps at once, whose rows it holds in registers, so that few partial sums
of the weights' gradients are written; torch adds these, always in the same order. The input of SiLU is computed again
for all steps that these inputs take part in.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scanlab_kernels.causal_conv1d.triton.tile import (
    Direction,
    Sequence,
    convolve,
    load_ids,
    load_rows,
    load_taps,
    numbers_of,
    same_sequence,
    tile_of,
)
from scanlab_kernels.gpu.launch_cache import Launch, launch
from scanlab_kernels.gpu.math import load, shrink, sigmoid
from scanlab_kernels.gpu.tile import Axes

TURNS = 4  # of the steps of one program


@triton.jit
def accumulate_direction(
    direction,
    axes,
    sums,
    grad_rows,
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
    """Add the share of one direction and STEPS steps to `sums` and to `grad_rows`, the gradients of the inputs.

    `rows` begins width - 1 steps before `start`, as in the forward kernel. The outputs that an input takes part in are
    those of its step and the width - 1 steps after it (forward) or before it (reverse).
    """
    taps, offset = load_taps(direction, channel, mask, WIDTH)
    base = direction.out + entry * axes.batch + channel.to(tl.int64) * axes.dim
    inner = ()  # gradients of the inputs of SiLU; the first one is that of row number `FIRST`
    FIRST: tl.constexpr = 0 if REVERSE else WIDTH - 1
    for i in tl.static_range(STEPS + WIDTH - 1):
        t = start - (WIDTH - 1) + FIRST + i
        exists = (t >= 0) & (t < length)
        g = load(base + t.to(tl.int64) * axes.time, mask & exists)
        if SILU:
            y = convolve(rows, ids, taps, offset, FIRST + i, WIDTH, REVERSE)
            open = sigmoid(y, shrink(y))
            g = tl.where(exists, g * (open * (1.0 + y * (1.0 - open))), 0.0)
        if ids is not None:
            g = tl.where(ids[FIRST + i] >= 0, g, 0.0)
        inner = inner + (g,)
    OWN: tl.constexpr = WIDTH - 1  # the row of the first step
    gradients = ()
    for i in tl.static_range(STEPS):
        gradient = grad_rows[i]
        for k in tl.static_range(WIDTH):
            if REVERSE:
                gradient += same_sequence(taps[k] * inner[i + k], ids, i + k, OWN + i)
            else:
                gradient += same_sequence(taps[k] * inner[i + OWN - k], ids, i + 2 * OWN - k, OWN + i)
        gradients = gradients + (gradient,)
    added = ()
    for k in tl.static_range(WIDTH):
        share = sums[k]
        for i in tl.static_range(STEPS):
            if REVERSE:
                share += same_sequence(inner[OWN + i] * rows[i + 2 * OWN - k], ids, i + 2 * OWN - k, OWN + i)
            else:
                share += same_sequence(inner[i] * rows[i + k], ids, i + k, OWN + i)
        added = added + (share,)
    share = sums[WIDTH]
    for i in tl.static_range(STEPS):
        share += inner[OWN - FIRST + i]
    return added + (share,), gradients


@triton.jit
def zeros(channel, COUNT: tl.constexpr):
    """Return a tuple of `COUNT` zeros for every channel."""
    values = ()
    for _ in tl.static_range(COUNT):
        values = values + (tl.zeros(channel.shape, tl.float32),)
    return values


@triton.jit
def store_sums(sums, direction, at, dim, channel, mask, COUNT: tl.constexpr):
    """Write the partial sums of one direction."""
    for k in tl.static_range(COUNT):
        tl.store(direction.sums + (at * COUNT + k) * dim + channel, sums[k], mask=mask)


@triton.jit
def backward_kernel(
    x,
    grad_x,
    ids,
    forward,
    reverse,
    axes,
    forward_axes,
    reverse_axes,
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
    HAS_FORWARD: tl.constexpr,
    HAS_REVERSE: tl.constexpr,
    SILU: tl.constexpr,
):
    """Compute the gradients of the inputs of a span of steps, and its share of those of weights and biases."""
    program = tl.program_id(0)
    channel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    entry = (program // blocks // spans).to(tl.int64)
    first = program // blocks % spans * (STEPS * TURNS) - before
    mask = channel < dim
    grad_at = grad_x + entry * grad_axes.batch + channel.to(tl.int64) * grad_axes.dim
    stop = length + after
    forward_sums = zeros(channel, WIDTH + 1)
    reverse_sums = zeros(channel, WIDTH + 1)
    for turn in tl.range(0, tl.minimum(tl.cdiv(stop - first, STEPS), TURNS)):
        start = first + turn * STEPS
        rows = load_rows(
            x + entry * axes.batch, axes.time, channel.to(tl.int64) * axes.dim, mask, start - (WIDTH - 1), -before,
            stop, STEPS + 2 * (WIDTH - 1),
        )  # fmt: skip
        names = None
        if ids is not None:
            names = load_ids(ids + entry * length, start - (WIDTH - 1), length, STEPS + 2 * (WIDTH - 1))
        grad_rows = zeros(channel, STEPS)
        if HAS_FORWARD:
            forward_sums, grad_rows = accumulate_direction(
                forward, forward_axes, forward_sums, grad_rows, rows, names, start, length, entry, channel, mask,
                STEPS, WIDTH, False, SILU,
            )  # fmt: skip
        if HAS_REVERSE:
            reverse_sums, grad_rows = accumulate_direction(
                reverse, reverse_axes, reverse_sums, grad_rows, rows, names, start, length, entry, channel, mask,
                STEPS, WIDTH, True, SILU,
            )  # fmt: skip
        for i in tl.static_range(STEPS):
            t = start + i
            at = grad_at + t.to(tl.int64) * grad_axes.time
            tl.store(at, grad_rows[i].to(grad_x.dtype.element_ty), mask=mask & (t < stop))
    at = entry * spans + program // blocks % spans
    if HAS_FORWARD:
        store_sums(forward_sums, forward, at, dim, channel, mask, WIDTH + 1)
    if HAS_REVERSE:
        store_sums(reverse_sums, reverse, at, dim, channel, mask, WIDTH + 1)


def empty_sums(sequence: Sequence, weight: Tensor | None) -> Tensor | None:
    """Return room for the partial sums of one direction (`Direction.sums`), None without a weight."""
    if weight is None:
        return None
    dim, width = weight.shape
    return sequence.x.new_empty((len(sequence.x) * _spans(sequence, width), width + 1, dim), dtype=torch.float32)


def run(sequence: Sequence, forward: Direction | None, reverse: Direction | None, silu: bool) -> Tensor:
    """Return the gradient of `sequence.x`, and write the sums of each direction."""
    grad_x = torch.empty_like(sequence.x)

    def make() -> Launch:
        numbers = numbers_of(sequence, forward, reverse, silu)
        numbers |= {
            "grad_axes": Axes(*grad_x.stride()),
            "spans": _spans(sequence, numbers["WIDTH"]),
            "TURNS": TURNS,
        }
        return Launch(backward_kernel, numbers["blocks"] * numbers["spans"] * len(sequence.x), numbers)

    grad_steps = grad_x[..., sequence.before :] if sequence.before else grad_x
    tensors = (sequence.steps, grad_steps, sequence.ids, forward, reverse)
    launch(tensors, ("causal_conv1d_backward", sequence.before, sequence.after, silu), make)
    return grad_x


def _spans(sequence: Sequence, width: int) -> int:
    """Return into how many spans the time is cut."""
    return -(-sequence.x.shape[2] // (tile_of(sequence, width)[0] * TURNS))
