# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Strides and state indices that the kernels of several ops use."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Axes(NamedTuple):
    """Strides of a (batch, dim, length) tensor in elements; a `constexpr` is a constant of the compiled code."""

    batch: int
    dim: int
    time: int | tl.constexpr


@triton.jit
def states_of(STATES: tl.constexpr, PADDED: tl.constexpr):
    """Return the state indices, filled up to a power of two, and a mask of those that exist."""
    index = tl.arange(0, PADDED)
    mask = tl.full([PADDED], 1, tl.int1)
    if STATES != PADDED:
        mask = index < STATES
    return index, mask
