# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Division of the length into segments that are scanned in parallel, for scans with too few programs to fill a GPU.

The map of a segment is affine in the state before it, h -> exp(A * sum(delta')) h + end, and so is that of its adjoint
in the backward scan. A first launch computes `end` and the sum for each segment, starting from zero; in the second one,
which is the scan itself, each segment starts by applying the maps of the segments before it in their order.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from scanlab_kernels.gpu.math import load

MAX_SEGMENTS = 64
SCHEDULERS = 4  # in a multiprocessor


@triton.jit
def store_segment_map(
    end, total, ends, totals, at, dim, channel, channel_mask, tile_at, tile_mask, STATES: tl.constexpr
):
    """Write the map of segment number `at`."""
    tl.store(ends + at * dim * STATES + tile_at, end, mask=tile_mask)
    tl.store(totals + at * dim + channel, total, mask=channel_mask)


@triton.jit
def apply_segment_map(
    state, ends, totals, at, dim, channel, channel_mask, tile_at, tile_mask, rates, STATES: tl.constexpr
):
    """Apply the map of segment number `at` to `state`; zero is not multiplied, as its decay may be infinite."""
    total = load(totals + at * dim + channel, channel_mask)
    end = load(ends + at * dim * STATES + tile_at, tile_mask)
    return tl.where(state == 0.0, end, tl.exp2(total[:, None, :] * rates) * state + end)


def cut(length: int, segments: int, multiple: int) -> tuple[int, int]:
    """Return the steps of a segment, divisible by `multiple`, and the number of segments, at most `segments`."""
    steps = -(-length // (segments * multiple)) * multiple
    return steps, -(-length // steps)


def fill_gpu(warps: int, length: int, multiprocessors: int, per_scheduler: float, first_pass: float) -> int:
    """Return the number of segments that fills a GPU; 1 where the first pass would cost more than it saves.

    This is an estimate. Applying the map of an earlier segment takes about as long as seven steps, and these maps
    depend on each other: with s segments the last one ends after (1 + first_pass) * length / s + 7 s steps, which is
    smallest near half the square root of the length.

    Args:
        warps: Warps of the scan in one segment.
        length: Time steps.
        multiprocessors: Multiprocessors of the GPU.
        per_scheduler: Warps per scheduler that hide each other's latency, or that there are registers for.
        first_pass: Cost of the first pass as a share of the scan's.
    """
    wanted = per_scheduler * SCHEDULERS * multiprocessors
    if warps * (1.0 + first_pass) >= wanted:
        return 1
    most = min(MAX_SEGMENTS, max(1, math.isqrt(length) // 2))
    return 1 << min(round(math.log2(wanted / warps)), most.bit_length() - 1)
