# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
"""Tile of one program of a scan kernel: a block of channels with all their states, in one direction and segment.

A tile is [lanes, states, channels]: `lanes` threads of a warp lie along dim, each with `channels` adjacent channels,
and the states are divided among the rest of the 32 threads. Triton chooses this layout for the shape, as long as
nothing else in the kernel suggests another one. An address whose stride the compiler knows to be 1 does, so the strides
of A and of the states are numbers that it does not specialise on: `A_dim`, `A_state`, and `one`.

Triton lays threads along the first axis up to 3.6 and along the last one since 3.7. There a tile is [channels, states,
lanes]; only `channels_of` and `sum_over_channels` depend on it.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from scanlab_kernels.gpu import version
from scanlab_kernels.gpu.math import LOG2_E, load
from scanlab_kernels.gpu.tile import Axes, states_of

LANES_LAST = tl.constexpr(version.lanes_last())


class Strides(NamedTuple):
    """Strides of z, and those that u, delta, out and the gradients like them share.

    Strides of time are constants of the compiled code, as is `ROW`: in an iteration of a loop only the first access to
    a tensor then needs arithmetic.
    """

    u: Axes
    z: Axes


class Tile(NamedTuple):
    """Constants of the compiled code of one kernel, each a `constexpr`.

    Attributes:
        lanes: Threads along dim, of all warps of a program.
        channels: Channels of a thread.
        even: Whether every block has all of its channels.
        states: States of a channel.
        padded: The next power of two.
        row: Distance from B and C of one step to those of the next.
        softplus: Whether softplus is applied.
        chunk: Steps between two checkpoints.
        unroll: Steps of an iteration; in the backward scan those whose states are kept in registers.
        stages: Iterations whose loads overlap.
        by_products: Steps of an iteration whose exponentials are computed by multiply-adds.
    """

    lanes: tl.constexpr
    channels: tl.constexpr
    even: tl.constexpr
    states: tl.constexpr
    padded: tl.constexpr
    row: tl.constexpr
    softplus: tl.constexpr
    chunk: tl.constexpr
    unroll: tl.constexpr
    stages: tl.constexpr
    by_products: tl.constexpr


@triton.jit
def locate_program(blocks, batch, segments, BATCH_FIRST: tl.constexpr):
    """Return the block of channels, the batch entry, the segment and the direction of this program."""
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
    """Return the time of step number `s` of the recurrence."""
    t = s
    if REVERSE:
        t = length - 1 - s
    return t


@triton.jit
def channels_of(block, width, LANES: tl.constexpr, CHANNELS: tl.constexpr, EVEN: tl.constexpr):
    """Return the group of a block, its channels as the outer axes of a tile, and a mask of those that exist.

    width: channels of one group.
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
    mask = tl.full(inner.shape, 1, tl.int1)  # a constant, which the compiler removes from every access
    if not EVEN:
        mask = inner < width
    return group, group * width + inner, mask


@triton.jit
def load_tile(inputs, tile, one, A_dim, A_state, block, width, groups, LANES: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the indices, masks and weights of a tile, which a program needs for all of its steps.

    These are the group; the channels and their mask; the state indices and their mask; the offsets of the tile in a
    (state, dim) tensor and their mask; A * log2(e); and delta_bias, or 0.
    """
    group, channel, channel_mask = channels_of(block, width, LANES, CHANNELS, tile.even)
    index, state_mask = states_of(tile.states, tile.padded)
    tile_at = index[None, :, None] * (groups * width) + channel[:, None, :] * one
    tile_mask = channel_mask[:, None, :] & state_mask[None, :, None]
    rates_at = index[None, :, None] * A_state + channel[:, None, :] * A_dim
    rates = load(inputs.A + rates_at, tile_mask) * LOG2_E
    bias = 0.0
    if inputs.delta_bias is not None:
        bias = load(inputs.delta_bias + channel, channel_mask)
    return group, channel, channel_mask, index, state_mask, tile_at, tile_mask, rates, bias


@triton.jit
def state_offsets(channel, index, one, STATES: tl.constexpr):
    """Return the offsets of a tile in a (dim, state) tensor; computed where used, as keeping them takes registers."""
    return index[None, :, None] * one + channel[:, None, :] * STATES


@triton.jit
def sum_over_channels(tile):
    """Return the sum over the channels of a tile for each state: within threads first, then across them."""
    if LANES_LAST:
        return tl.sum(tl.sum(tile, axis=0), axis=1)
    else:
        return tl.sum(tl.sum(tile, axis=2), axis=0)
