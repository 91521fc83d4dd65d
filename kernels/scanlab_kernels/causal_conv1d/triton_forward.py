# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The short convolution on a GPU: a few steps of both directions from rows that a program reads once."""

from __future__ import annotations

import triton
import triton.language as tl

from scanlab_kernels.causal_conv1d.triton_tile import Sequence, Way, convolved, ids_from, numbers_of, rows_from, taps_of
from scanlab_kernels.gpu.launch_cache import Launch
from scanlab_kernels.gpu.math import shrink, sigmoid


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


def forward(of: Sequence, ahead: Way | None, back: Way | None, silu: bool) -> Launch:
    """The launch that writes the outputs of the directions that are there."""
    numbers = numbers_of(of, ahead, back, silu)
    spans = -(-numbers["length"] // numbers["STEPS"])
    programs = numbers["blocks"] * spans * len(of.x)
    tensors = {"x": of.x[..., of.before :], "ids": of.ids, "ahead": ahead, "back": back}
    return Launch(forward_kernel, programs, tensors, numbers | {"spans": spans}, {"num_warps": 1})
