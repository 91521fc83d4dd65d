# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""What one program of a GPU kernel holds: a tile of channels with all their states, one direction, one run of steps.

A tile is [lanes, states, channels]: `lanes` threads of a warp side by side along dim, each with `channels`
adjacent channels; what is left of the 32 threads shares out the states. The shape alone makes Triton choose that
layout, as long as nothing else in the kernel suggests another. An address whose stride is known to be 1 does suggest
one, so the strides of A and of the states are numbers that the compiler must not look at: `A_dim`, `A_state`, `one`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Axes(NamedTuple):
    """The strides of a (batch, dim, length) tensor, in elements."""

    batch: int
    dim: int
    time: int


class Strides(NamedTuple):
    """The strides of z, and those that u, delta, out and every gradient like them share."""

    u: Axes
    z: Axes


class Launch(NamedTuple):
    """One call of a kernel: how many programs, with what, compiled how."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    options: dict[str, int]

    def run(self) -> None:
        """Queue the kernel on the current stream; in Triton's interpreter, compute."""
        self.kernel[(self.programs,)](**self.arguments, **self.options)


@triton.jit
def place(blocks, batch, SEGMENTS: tl.constexpr, BATCH_FIRST: tl.constexpr):
    """Which block of channels, batch entry, segment and direction this program has."""
    program = tl.program_id(0)
    if BATCH_FIRST:
        entry = program % batch
        rest = program // batch
        block = rest % blocks
        rest = rest // blocks
    else:
        block = program % blocks
        rest = program // blocks
        entry = rest % batch
        rest = rest // batch
    return block, entry.to(tl.int64), rest % SEGMENTS, rest // SEGMENTS


@triton.jit
def channels_of(block, width, LANES: tl.constexpr, CHANNELS: tl.constexpr, EVEN: tl.constexpr):
    """The group of a block, its channels as [lanes, channels], and which of them exist.

    width  channels of one group
    """
    blocks = tl.cdiv(width, LANES * CHANNELS)
    lane = tl.arange(0, LANES)
    column = tl.arange(0, CHANNELS)
    inner = (block % blocks) * (LANES * CHANNELS) + lane[:, None] * CHANNELS + column[None, :]
    group = block // blocks
    mask = tl.full([LANES, CHANNELS], 1, tl.int1)  # a constant, which the compiler drops from every access
    if not EVEN:
        mask = inner < width
    return group, group * width + inner, mask


@triton.jit
def states_of(STATES: tl.constexpr, PADDED: tl.constexpr):
    """The indices of the states, filled up to a power of two, and which of them exist."""
    index = tl.arange(0, PADDED)
    mask = tl.full([PADDED], 1, tl.int1)
    if STATES != PADDED:
        mask = index < STATES
    return index, mask
