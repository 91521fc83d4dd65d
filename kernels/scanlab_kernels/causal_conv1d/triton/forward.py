# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Forward kernel of the short convolution: a few steps of both directions from rows that a program reads once."""

from __future__ import annotations

import triton
import triton.language as tl

from scanlab_kernels.causal_conv1d.triton.tile import (
    Direction,
    Sequence,
    convolve,
    load_ids,
    load_rows,
    load_taps,
    numbers_of,
)
from scanlab_kernels.gpu.launch_cache import Launch, launch
from scanlab_kernels.gpu.math import shrink, sigmoid


@triton.jit
def write_direction(
    direction,
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
    """Write the outputs of one direction for the steps from `start` on; `rows` begins width - 1 steps before."""
    taps, offset = load_taps(direction, channel, mask, WIDTH)
    out = direction.out + entry * axes.batch + channel.to(tl.int64) * axes.dim
    for i in tl.static_range(STEPS):
        total = convolve(rows, ids, taps, offset, i + WIDTH - 1, WIDTH, REVERSE)
        if SILU:
            total = total * sigmoid(total, shrink(total))
        if ids is not None:
            total = tl.where(ids[i + WIDTH - 1] >= 0, total, 0.0)
        t = start + i
        tl.store(out + t.to(tl.int64) * axes.time, total.to(direction.out.dtype.element_ty), mask=mask & (t < length))


@triton.jit
def forward_kernel(
    x,
    ids,
    forward,
    reverse,
    axes,
    forward_axes,
    reverse_axes,
    before,
    after,
    length,
    dim,
    blocks,
    spans,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_FORWARD: tl.constexpr,
    HAS_REVERSE: tl.constexpr,
    SILU: tl.constexpr,
):
    """Compute a few steps of a block of channels, in the directions that are there."""
    program = tl.program_id(0)
    channel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    entry = (program // blocks // spans).to(tl.int64)
    start = program // blocks % spans * STEPS
    mask = channel < dim
    rows = load_rows(
        x + entry * axes.batch, axes.time, channel.to(tl.int64) * axes.dim, mask, start - (WIDTH - 1), -before,
        length + after, STEPS + 2 * (WIDTH - 1),
    )  # fmt: skip
    names = None
    if ids is not None:
        names = load_ids(ids + entry * length, start - (WIDTH - 1), length, STEPS + 2 * (WIDTH - 1))
    if HAS_FORWARD:
        write_direction(
            forward, forward_axes, rows, names, start, length, entry, channel, mask, STEPS, WIDTH, False, SILU
        )
    if HAS_REVERSE:
        write_direction(
            reverse, reverse_axes, rows, names, start, length, entry, channel, mask, STEPS, WIDTH, True, SILU
        )


def run(sequence: Sequence, forward: Direction | None, reverse: Direction | None, silu: bool) -> None:
    """Write the outputs of the directions that are not None."""

    def make() -> Launch:
        numbers = numbers_of(sequence, forward, reverse, silu)
        numbers["spans"] = -(-numbers["length"] // numbers["STEPS"])
        return Launch(forward_kernel, numbers["blocks"] * numbers["spans"] * len(sequence.x), numbers)

    tensors = (sequence.steps, sequence.ids, forward, reverse)
    launch(tensors, ("causal_conv1d", sequence.before, sequence.after, silu), make)
