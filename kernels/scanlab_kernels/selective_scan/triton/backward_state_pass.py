# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment, var-annotated"
# ruff: noqa: RUF005  (what Triton compiles has no starred tuples)
"""The first pass of a backward scan in segments: what each does to the gradient of the state behind it.

With the names of `triton_backward`, R[t] = decay[t] (g[t] C[t] + R[t+1]) is a scan against time that needs no states:
of step sizes, gates, C and the gradient of the output. Compiled for compute capability 9.0 at the defaults it issues
6.3 instructions for a state update, 1.125 of them on the special-function unit, which binds at 9 clocks; the pass that
follows issues 29, and about 6 in its sweeps over chunks. So two passes take 1.26 times the clocks of one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scanlab_kernels.gpu.math import load, shrink, sigmoid
from scanlab_kernels.gpu.tile import held, place, time_of
from scanlab_kernels.selective_scan.triton.forward import step_sizes
from scanlab_kernels.selective_scan.triton.segments import leave_map


@triton.jit
def retreat(
    reached,
    total,
    s,
    delta,
    z,
    grad_out,
    C,
    bias,
    rates,
    channel_mask,
    state_mask,
    channel,
    strides,
    length,
    COUNT: tl.constexpr,
    ROW: tl.constexpr,
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """The gradient of the state before `COUNT` steps from step `s` on, and `total` with their sizes added."""
    raw = ()
    outer = ()
    gates = ()
    weights = ()
    t = time_of(s, length, REVERSE)
    at = t * strides.u.time + channel * strides.u.dim
    delta += at
    grad_out += at
    C += t * ROW
    if z is not None:
        z += t * strides.z.time + channel * strides.z.dim
    for i in tl.static_range(COUNT):
        ahead = -i if REVERSE else i
        raw = raw + (load(delta + ahead * strides.u.time, channel_mask),)
        outer = outer + (load(grad_out + ahead * strides.u.time, channel_mask),)
        weights = weights + (load(C + ahead * ROW, state_mask)[None, :, None],)
        if z is not None:
            gates = gates + (load(z + ahead * strides.z.time, channel_mask),)
    for i in tl.static_range(COUNT - 1, -1, -1):
        size = step_sizes(raw[i], bias, SOFTPLUS)
        g = outer[i]
        if z is not None:
            g = g * (gates[i] * sigmoid(gates[i], shrink(gates[i])))
        reached = tl.exp2(size[:, None, :] * rates) * (g[:, None, :] * weights[i] + reached)
        total += size
    return reached, total


@triton.jit
def walk(
    inputs,
    grad_out,
    ends,
    totals,
    strides,
    length,
    steps,
    one,
    A_dim,
    A_state,
    block,
    entry,
    place_of,
    segment,
    width,
    groups,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    UNROLL: tl.constexpr,
    STAGES: tl.constexpr,
    ROW: tl.constexpr,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    EVEN: tl.constexpr,
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """One tile of one direction over one segment, from its last step to its first."""
    group, channel, channel_mask, index, state_mask, kept_at, tile_mask, rates, bias = held(
        inputs, one, A_dim, A_state, block, width, groups, LANES, CHANNELS, STATES, PADDED, EVEN
    )
    delta = inputs.delta + entry * strides.u.batch
    g = grad_out + entry * strides.u.batch
    z = None
    if inputs.z is not None:
        z = inputs.z + entry * strides.z.batch
    C = inputs.C + (entry * groups + group) * length * ROW + index
    start = segment * steps
    stop = tl.minimum(start + steps, length)
    turns = (stop - start) // UNROLL
    reached = tl.zeros(rates.shape, tl.float32)
    total = tl.zeros(channel.shape, tl.float32)
    for over in tl.range(0, stop - start - turns * UNROLL):
        reached, total = retreat(
            reached, total, stop - 1 - over, delta, z, g, C, bias, rates, channel_mask, state_mask, channel, strides,
            length, 1, ROW, REVERSE, SOFTPLUS,
        )  # fmt: skip
    for over in tl.range(0, turns, num_stages=STAGES):
        reached, total = retreat(
            reached, total, start + (turns - 1 - over) * UNROLL, delta, z, g, C, bias, rates, channel_mask, state_mask,
            channel, strides, length, UNROLL, ROW, REVERSE, SOFTPLUS,
        )  # fmt: skip
    leave_map(reached, total, ends, totals, place_of, groups * width, channel, channel_mask, kept_at, tile_mask, STATES)


@triton.jit(do_not_specialize=["batch", "length", "steps", "one", "A_dim", "A_state"])
def scan(
    first,
    second,
    grad_out,
    ends,
    totals,
    strides,
    batch,
    length,
    steps,
    segments,
    one,
    A_dim,
    A_state,
    width,
    groups,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    UNROLL: tl.constexpr,
    STAGES: tl.constexpr,
    ROW: tl.constexpr,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    EVEN: tl.constexpr,
    BOTH: tl.constexpr,
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BATCH_FIRST: tl.constexpr,
):
    """The maps of all segments of the way back of `first`, or of `first` and `second`.

    grad_out  the gradient of the output, laid out like u
    ends      (directions, batch, segments, state, dim), and `totals` (directions, batch, segments, dim)
    """
    blocks = groups * tl.cdiv(width, LANES * CHANNELS)
    block, entry, segment, direction = place(blocks, batch, segments, BATCH_FIRST)
    at = (direction * batch + entry) * segments + segment
    if not BOTH:
        walk(
            first, grad_out, ends, totals, strides, length, steps, one, A_dim, A_state, block, entry, at, segment,
            width, groups, LANES, CHANNELS, UNROLL, STAGES, ROW, STATES, PADDED, EVEN, REVERSE, SOFTPLUS,
        )  # fmt: skip
    elif direction == 0:
        walk(
            first, grad_out, ends, totals, strides, length, steps, one, A_dim, A_state, block, entry, at, segment,
            width, groups, LANES, CHANNELS, UNROLL, STAGES, ROW, STATES, PADDED, EVEN, False, SOFTPLUS,
        )  # fmt: skip
    else:
        walk(
            second, grad_out, ends, totals, strides, length, steps, one, A_dim, A_state, block, entry, at, segment,
            width, groups, LANES, CHANNELS, UNROLL, STAGES, ROW, STATES, PADDED, EVEN, True, SOFTPLUS,
        )  # fmt: skip
