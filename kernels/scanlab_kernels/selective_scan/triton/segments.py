# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""A scan cut into segments of its length, where there are fewer programs than a GPU can hold.

What a segment does to a state is affine, h -> exp(A sum of delta') h + end, and the same holds for the gradient of a
state on the way back. So one launch finds `end` and the sum for every segment from a state of zero, and the scan
itself begins each segment with the maps of those before it, in its order.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from scanlab_kernels.gpu.math import load

MOST = 64
SCHEDULERS = 4  # of a multiprocessor


@triton.jit
def leave_map(end, total, ends, totals, at, dim, channel, channel_mask, kept_at, tile_mask, STATES: tl.constexpr):
    """Write down what the segment number `at` does to a state."""
    tl.store(ends + at * dim * STATES + kept_at, end, mask=tile_mask)
    tl.store(totals + at * dim + channel, total, mask=channel_mask)


@triton.jit
def crossed(state, ends, totals, at, dim, channel, channel_mask, kept_at, tile_mask, rates, STATES: tl.constexpr):
    """`state` after the segment number `at`; a state of zero is not multiplied, not even by an infinite decay."""
    total = load(totals + at * dim + channel, channel_mask)
    end = load(ends + at * dim * STATES + kept_at, tile_mask)
    return tl.where(state == 0.0, end, tl.exp2(total[:, None, :] * rates) * state + end)


def cut(length: int, segments: int, multiple: int) -> tuple[int, int]:
    """The steps of a segment, a multiple of `multiple`, and how many segments have any; at most `segments`."""
    steps = -(-length // (segments * multiple)) * multiple
    return steps, -(-length // steps)


def enough(warps: int, length: int, multiprocessors: int, per_scheduler: float, first_pass: float) -> int:
    """How many segments give a GPU enough to do: 1 where the first pass would cost more than it brings.

    warps          of the scan in one piece
    per_scheduler  warps that hide each other's latency, or as many as there are registers for
    first_pass     what it costs, as a share of the scan

    Reckoned, not measured. The map of an earlier segment takes about as long as seven steps, one waiting for the
    other: with s segments the last one ends after (1 + first_pass) length / s + 7 s, least near half the root of the
    length.
    """
    wanted = per_scheduler * SCHEDULERS * multiprocessors
    if warps * (1.0 + first_pass) >= wanted:
        return 1
    most = min(MOST, max(1, math.isqrt(length) // 2))
    return 1 << min(round(math.log2(wanted / warps)), most.bit_length() - 1)
