# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
"""What one program of a GPU kernel holds: a tile of channels with all their states, one direction, one run of steps.

A tile is [lanes, states, channels]: `lanes` threads of a warp side by side along dim, each with `channels`
adjacent channels; what is left of the 32 threads shares out the states. The shape alone makes Triton choose that
layout, as long as nothing else in the kernel suggests another. An address whose stride is known to be 1 does suggest
one, so the strides of A and of the states are numbers that the compiler must not look at: `A_dim`, `A_state`, `one`.
Triton lays threads along the first axis up to 3.6 and along the last one since 3.7: there a tile is [channels, states,
lanes], and nothing but `channels_of` and `over_channels` knows.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from scanlab_kernels.gpu import version as triton_version
from scanlab_kernels.gpu.math import LOG2_E, load

LANES_LAST = tl.constexpr(triton_version.lanes_last())


class Axes(NamedTuple):
    """The strides of a (batch, dim, length) tensor, in elements; a constant of the code where it says so."""

    batch: int
    dim: int
    time: int | tl.constexpr


class Strides(NamedTuple):
    """The strides of z, and those that u, delta, out and every gradient like them share.

    Those of time are constants of the code, as is how far B and C of one step are from those of the next: then an
    access needs no arithmetic of its own beside the first one of its tensor in a turn of a loop.
    """

    u: Axes
    z: Axes


@triton.jit
def place(blocks, batch, segments, BATCH_FIRST: tl.constexpr):
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
    return block, entry.to(tl.int64), rest % segments, rest // segments


@triton.jit
def time_of(s, length, REVERSE: tl.constexpr):
    """The time of step number `s`."""
    t = s
    if REVERSE:
        t = length - 1 - s
    return t


@triton.jit
def channels_of(block, width, LANES: tl.constexpr, CHANNELS: tl.constexpr, EVEN: tl.constexpr):
    """The group of a block, its channels as the outer axes of a tile, and which of them exist.

    width  channels of one group
    """
    blocks = tl.cdiv(width, LANES * CHANNELS)
    lane = tl.arange(0, LANES) * CHANNELS
    column = tl.arange(0, CHANNELS)
    inner = (block % blocks) * (LANES * CHANNELS)
    if LANES_LAST:
        inner += column[:, None] + lane[None, :]
    else:
        inner += lane[:, None] + column[None, :]
    group = block // blocks
    mask = tl.full(inner.shape, 1, tl.int1)  # a constant, which the compiler drops from every access
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


@triton.jit
def held(
    inputs,
    one,
    A_dim,
    A_state,
    block,
    width,
    groups,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    EVEN: tl.constexpr,
):
    """What a program holds of one direction throughout: where its tile lies, and the weights of its channels.

    Returns the group; its channels, and which of them exist; the indices of the states, and which of them exist; the
    places of the tile in (state, dim), and which of them exist; A, times log2(e); and delta_bias, or 0.
    """
    group, channel, channel_mask = channels_of(block, width, LANES, CHANNELS, EVEN)
    index, state_mask = states_of(STATES, PADDED)
    kept_at = index[None, :, None] * (groups * width) + channel[:, None, :] * one
    tile_mask = channel_mask[:, None, :] & state_mask[None, :, None]
    rates_at = index[None, :, None] * A_state + channel[:, None, :] * A_dim
    rates = load(inputs.A + rates_at, tile_mask) * LOG2_E
    bias = 0.0
    if inputs.delta_bias is not None:
        bias = load(inputs.delta_bias + channel, channel_mask)
    return group, channel, channel_mask, index, state_mask, kept_at, tile_mask, rates, bias


@triton.jit
def states_side_by_side(channel, index, one, STATES: tl.constexpr):
    """The places of a tile in (dim, state): found where they are used, since held throughout they fill registers."""
    return index[None, :, None] * one + channel[:, None, :] * STATES


@triton.jit
def over_channels(tile):
    """The sum over all channels of a tile, for each state: within threads first, then across them."""
    if LANES_LAST:
        return tl.sum(tl.sum(tile, axis=0), axis=1)
    else:
        return tl.sum(tl.sum(tile, axis=2), axis=0)
