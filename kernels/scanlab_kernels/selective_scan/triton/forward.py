# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005, SIM102, SIM108  (Triton has no starred tuples, and other rules for branches)
"""Forward scan: sequential in time, states in registers, several channels in one program.

For each step a program reads B and C once for all of its channels, and computes a product, an exponential, a product
and two fused products for each state. Threads exchange nothing if each one has all states of its channels. Both
directions run in one launch; the reverse one counts time down, and no tensor is flipped.

Where there are too few programs to fill the GPU the length is cut into segments: see `segments.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scanlab_kernels.gpu.math import exp2_by_products, load, shrink, sigmoid, softplus
from scanlab_kernels.selective_scan.triton.segments import apply_segment_map, store_segment_map
from scanlab_kernels.selective_scan.triton.tile import load_tile, locate_program, state_offsets, time_of


@triton.jit
def discretize_delta(raw, bias, SOFTPLUS: tl.constexpr):
    """Return delta' = softplus(raw + bias), or raw + bias without softplus."""
    x = raw + bias
    if SOFTPLUS:
        x = softplus(x, shrink(x))
    return x


@triton.jit
def forward_steps(
    h,
    total,
    s,
    u,
    delta,
    z,
    out,
    B,
    C,
    skip,
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
    BY_PRODUCTS: tl.constexpr,
):
    """Return the states after `COUNT` steps from step `s` on, and `total` with the delta' of these steps added.

    All loads precede all arithmetic and all stores follow it, so that none waits for another. Without `out` only the
    states are computed. The first `BY_PRODUCTS` steps compute their exponentials by multiply-adds.
    """
    inputs = ()
    sizes = ()
    gates = ()
    ins = ()
    outs = ()
    t = time_of(s, length, REVERSE)
    at = t * strides.u.time + channel * strides.u.dim
    u += at
    delta += at
    B += t * tile.row
    if out is not None:
        out += at
        C += t * tile.row
        if z is not None:
            z += t * strides.z.time + channel * strides.z.dim
    for i in tl.static_range(COUNT):
        step = -i if REVERSE else i
        inputs = inputs + (load(u + step * strides.u.time, channel_mask),)
        sizes = sizes + (load(delta + step * strides.u.time, channel_mask),)
        ins = ins + (load(B + step * tile.row, state_mask)[None, :, None],)
        if out is not None:
            outs = outs + (load(C + step * tile.row, state_mask)[None, :, None],)
            if z is not None:
                gates = gates + (load(z + step * strides.z.time, channel_mask),)
    results = ()
    for i in tl.static_range(COUNT):
        size = discretize_delta(sizes[i], bias, tile.softplus)
        exponent = size[:, None, :] * rates
        if i < BY_PRODUCTS:
            decay = exp2_by_products(exponent)
        else:
            decay = tl.exp2(exponent)
        h = decay * h + (size * inputs[i])[:, None, :] * ins[i]
        total += size
        if out is not None:
            y = tl.sum(h * outs[i], axis=1)
            if skip is not None:
                y = y + skip * inputs[i]
            if z is not None:
                y = y * (gates[i] * sigmoid(gates[i], shrink(gates[i])))
            results = results + (y,)
    if out is not None:
        for i in tl.static_range(COUNT):
            step = -i if REVERSE else i
            tl.store(out + step * strides.u.time, results[i].to(out.dtype.element_ty), mask=channel_mask)
    return h, total


@triton.jit
def scan_range(
    h,
    total,
    start,
    stop,
    u,
    delta,
    z,
    out,
    B,
    C,
    skip,
    bias,
    rates,
    channel_mask,
    state_mask,
    channel,
    strides,
    length,
    tile,
    UNROLL: tl.constexpr,
    STAGES: tl.constexpr,
    REVERSE: tl.constexpr,
    BY_PRODUCTS: tl.constexpr,
):
    """Run `forward_steps` over the steps [start, stop): `UNROLL` at a time, and the rest one at a time."""
    whole = start + (stop - start) // UNROLL * UNROLL
    for s in tl.range(start, whole, UNROLL, num_stages=STAGES):
        h, total = forward_steps(
            h, total, s, u, delta, z, out, B, C, skip, bias, rates, channel_mask, state_mask, channel, strides, length,
            tile, UNROLL, REVERSE, BY_PRODUCTS,
        )  # fmt: skip
    for s in tl.range(whole, stop):
        h, total = forward_steps(
            h, total, s, u, delta, z, out, B, C, skip, bias, rates, channel_mask, state_mask, channel, strides, length,
            tile, 1, REVERSE, 0,
        )  # fmt: skip
    return h, total


@triton.jit
def scan_tile(
    inputs,
    out,
    last,
    checkpoints,
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
    row,
    segment,
    segments,
    width,
    groups,
    ENDS_ALONE: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Scan one tile of one direction over one segment; with `ENDS_ALONE` compute only the map of the segment.

    row: index of (direction, batch entry) in the tensors of states.
    """
    group, channel, channel_mask, index, state_mask, tile_at, tile_mask, rates, bias = load_tile(
        inputs, tile, one, A_dim, A_state, block, width, groups, tile.lanes, tile.channels
    )
    dim = groups * width
    projection = (entry * groups + group) * length * tile.row + index
    u = inputs.u + entry * strides.u.batch
    delta = inputs.delta + entry * strides.u.batch
    skip = None
    if inputs.D is not None:
        skip = load(inputs.D + channel, channel_mask)
    z = None
    if inputs.z is not None:
        z = inputs.z + entry * strides.z.batch
    start = segment * steps
    stop = tl.minimum(start + steps, length)
    h = tl.zeros(rates.shape, tl.float32)
    total = tl.zeros(channel.shape, tl.float32)
    if inputs.initial_state is not None:
        if segment == 0:
            last_at = state_offsets(channel, index, one, tile.states)
            h = load(inputs.initial_state + entry * dim * tile.states + last_at, tile_mask)
    B = inputs.B + projection
    C = inputs.C + projection
    if ENDS_ALONE:
        h, total = scan_range(
            h, total, start, stop, u, delta, None, None, B, None, None, bias, rates, channel_mask, state_mask, channel,
            strides, length, tile, tile.unroll, tile.stages, REVERSE, 0,
        )  # fmt: skip
        at = row * segments + segment
        store_segment_map(h, total, ends, totals, at, dim, channel, channel_mask, tile_at, tile_mask, tile.states)
    else:
        if ends is not None:
            for before in tl.range(0, segment):
                at = row * segments + before
                h = apply_segment_map(
                    h, ends, totals, at, dim, channel, channel_mask, tile_at, tile_mask, rates, tile.states
                )
        out_at = out + entry * strides.u.batch
        if checkpoints is None:
            h, total = scan_range(
                h, total, start, stop, u, delta, z, out_at, B, C, skip, bias, rates, channel_mask, state_mask, channel,
                strides, length, tile, tile.unroll, tile.stages, REVERSE, tile.by_products,
            )  # fmt: skip
        else:
            chunks = tl.cdiv(length, tile.chunk)
            for first in tl.range(start, stop, tile.chunk):
                kept = checkpoints + (row * chunks + first // tile.chunk) * dim * tile.states
                tl.store(kept + tile_at, h, mask=tile_mask)
                h, total = scan_range(
                    h, total, first, tl.minimum(first + tile.chunk, stop), u, delta, z, out_at, B, C, skip, bias, rates,
                    channel_mask, state_mask, channel, strides, length, tile, tile.unroll, tile.stages, REVERSE,
                    tile.by_products,
                )  # fmt: skip
        if stop == length:
            last_at = state_offsets(channel, index, one, tile.states)
            tl.store(last + row * dim * tile.states + last_at, h, mask=tile_mask)


@triton.jit(do_not_specialize=["batch", "length", "steps", "one", "A_dim", "A_state"])
def scan(
    first,
    second,
    out,
    last,
    checkpoints,
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
    ENDS_ALONE: tl.constexpr,
    BOTH: tl.constexpr,
    REVERSE: tl.constexpr,
    BATCH_FIRST: tl.constexpr,
):
    """Scan `first`, against time if REVERSE; where BOTH, scan `first` along time and `second` against it.

    out: an output like u for each direction, the forward one first.
    last: (directions, batch, dim, state), the last states.
    checkpoints: (directions, batch, chunks, state, dim), or None.
    ends, totals: (directions, batch, segments, state, dim) and (directions, batch, segments, dim), or None.
    width: channels of one group.
    """
    blocks = groups * tl.cdiv(width, tile.lanes * tile.channels)
    block, entry, segment, direction = locate_program(blocks, batch, segments, BATCH_FIRST)
    row = direction * batch + entry
    if BOTH:
        if direction == 1:
            out += batch.to(tl.int64) * length * groups * width
            scan_tile(
                second, out, last, checkpoints, ends, totals, strides, length, steps, one, A_dim, A_state, tile, block,
                entry, row, segment, segments, width, groups, ENDS_ALONE, True,
            )  # fmt: skip
            return
    scan_tile(
        first, out, last, checkpoints, ends, totals, strides, length, steps, one, A_dim, A_state, tile, block, entry,
        row, segment, segments, width, groups, ENDS_ALONE, REVERSE,
    )  # fmt: skip
