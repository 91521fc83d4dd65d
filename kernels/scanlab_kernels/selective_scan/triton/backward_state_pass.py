# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment, var-annotated"
# ruff: noqa: RUF005, SIM102  (Triton has no starred tuples)
"""First pass of a backward scan in segments: the map of each segment for the adjoint.

In the notation of `backward.py`, R[t] = decay[t] (g[t] C[t] + R[t+1]) is a scan against time that needs no states, only
delta', gates, C and the gradient of the output. Compiled for compute capability 9.0 at the defaults it issues 6.3
instructions for each state update, of which 1.125 on the special-function unit, which limits it to 9 clocks; the pass
that follows issues 29, and about 6 to recompute states. Two passes thus take 1.26 times the clocks of one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scanlab_kernels.gpu.math import load, shrink, sigmoid
from scanlab_kernels.selective_scan.triton.forward import discretize_delta
from scanlab_kernels.selective_scan.triton.segments import store_segment_map
from scanlab_kernels.selective_scan.triton.tile import load_tile, locate_program, time_of


@triton.jit
def adjoint_steps(
    adjoint,
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
    tile,
    COUNT: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Return the adjoint before `COUNT` steps from step `s` on, and `total` with the delta' of these steps added."""
    raw = ()
    outer = ()
    gates = ()
    weights = ()
    t = time_of(s, length, REVERSE)
    at = t * strides.u.time + channel * strides.u.dim
    delta += at
    grad_out += at
    C += t * tile.row
    if z is not None:
        z += t * strides.z.time + channel * strides.z.dim
    for i in tl.static_range(COUNT):
        step = -i if REVERSE else i
        raw = raw + (load(delta + step * strides.u.time, channel_mask),)
        outer = outer + (load(grad_out + step * strides.u.time, channel_mask),)
        weights = weights + (load(C + step * tile.row, state_mask)[None, :, None],)
        if z is not None:
            gates = gates + (load(z + step * strides.z.time, channel_mask),)
    for i in tl.static_range(COUNT - 1, -1, -1):
        size = discretize_delta(raw[i], bias, tile.softplus)
        g = outer[i]
        if z is not None:
            g = g * (gates[i] * sigmoid(gates[i], shrink(gates[i])))
        adjoint = tl.exp2(size[:, None, :] * rates) * (g[:, None, :] * weights[i] + adjoint)
        total += size
    return adjoint, total


@triton.jit
def scan_tile(
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
    tile,
    block,
    entry,
    at,
    segment,
    width,
    groups,
    REVERSE: tl.constexpr,
):
    """Compute the map of one segment for one tile of one direction, from its last step to its first."""
    group, channel, channel_mask, index, state_mask, tile_at, tile_mask, rates, bias = load_tile(
        inputs, tile, one, A_dim, A_state, block, width, groups, tile.lanes, tile.channels
    )
    delta = inputs.delta + entry * strides.u.batch
    g = grad_out + entry * strides.u.batch
    z = None
    if inputs.z is not None:
        z = inputs.z + entry * strides.z.batch
    C = inputs.C + (entry * groups + group) * length * tile.row + index
    start = segment * steps
    stop = tl.minimum(start + steps, length)
    unrolled = (stop - start) // tile.unroll
    adjoint = tl.zeros(rates.shape, tl.float32)
    total = tl.zeros(channel.shape, tl.float32)
    for over in tl.range(0, stop - start - unrolled * tile.unroll):
        adjoint, total = adjoint_steps(
            adjoint, total, stop - 1 - over, delta, z, g, C, bias, rates, channel_mask, state_mask, channel, strides,
            length, tile, 1, REVERSE,
        )  # fmt: skip
    for over in tl.range(0, unrolled, num_stages=tile.stages):
        adjoint, total = adjoint_steps(
            adjoint, total, start + (unrolled - 1 - over) * tile.unroll, delta, z, g, C, bias, rates, channel_mask,
            state_mask, channel, strides, length, tile, tile.unroll, REVERSE,
        )  # fmt: skip
    store_segment_map(
        adjoint, total, ends, totals, at, groups * width, channel, channel_mask, tile_at, tile_mask, tile.states
    )


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
    one,
    A_dim,
    A_state,
    tile,
    segments,
    width,
    groups,
    BOTH: tl.constexpr,
    REVERSE: tl.constexpr,
    BATCH_FIRST: tl.constexpr,
):
    """Compute the maps of all segments for the adjoint of `first`, or of `first` and `second`.

    grad_out: gradient of the output, in the strides of u.
    ends, totals: (directions, batch, segments, state, dim) and (directions, batch, segments, dim), written.
    """
    blocks = groups * tl.cdiv(width, tile.lanes * tile.channels)
    block, entry, segment, direction = locate_program(blocks, batch, segments, BATCH_FIRST)
    at = (direction * batch + entry) * segments + segment
    if BOTH:
        if direction == 1:
            scan_tile(
                second, grad_out, ends, totals, strides, length, steps, one, A_dim, A_state, tile, block, entry, at,
                segment, width, groups, True,
            )  # fmt: skip
            return
    scan_tile(
        first, grad_out, ends, totals, strides, length, steps, one, A_dim, A_state, tile, block, entry, at, segment,
        width, groups, REVERSE,
    )  # fmt: skip
