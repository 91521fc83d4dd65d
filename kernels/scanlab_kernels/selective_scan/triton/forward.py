# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005, SIM102, SIM108  (what Triton compiles has no starred tuples, and other rules for branches)
"""The forward scan on a GPU: sequential in time, states in registers, several channels in one program.

For each step a program reads B and C once for all of its channels and computes one product, one exponential, one
product and two fused products for each state. Nothing is exchanged between threads where a thread has all states of
its channels. Both directions run in one launch; in reverse the step counts down, and no tensor is flipped.

Where there are fewer programs than the chip can hold, `segments` cuts the length: see `triton_segments`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scanlab_kernels.gpu.math import exp2_by_products, load, shrink, sigmoid, softplus
from scanlab_kernels.gpu.tile import held, place, states_side_by_side, time_of
from scanlab_kernels.selective_scan.triton.segments import crossed, leave_map


@triton.jit
def step_sizes(raw, bias, SOFTPLUS: tl.constexpr):
    """delta' of the steps whose sizes before bias and softplus are `raw`."""
    x = raw + bias
    if SOFTPLUS:
        x = softplus(x, shrink(x))
    return x


@triton.jit
def advance(
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
    COUNT: tl.constexpr,
    ROW: tl.constexpr,
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BY_PRODUCTS: tl.constexpr,
):
    """The states after `COUNT` steps from step `s` on, and `total` with their sizes added.

    All loads stand before all arithmetic, and all stores behind it, so that none waits for another. Without `out`
    only the states are wanted; the first `BY_PRODUCTS` steps compute their exponentials by multiply-adds.
    ROW is how far B and C of one step are from those of the next.
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
    B += t * ROW
    if out is not None:
        out += at
        C += t * ROW
        if z is not None:
            z += t * strides.z.time + channel * strides.z.dim
    for i in tl.static_range(COUNT):
        ahead = -i if REVERSE else i
        inputs = inputs + (load(u + ahead * strides.u.time, channel_mask),)
        sizes = sizes + (load(delta + ahead * strides.u.time, channel_mask),)
        ins = ins + (load(B + ahead * ROW, state_mask)[None, :, None],)
        if out is not None:
            outs = outs + (load(C + ahead * ROW, state_mask)[None, :, None],)
            if z is not None:
                gates = gates + (load(z + ahead * strides.z.time, channel_mask),)
    results = ()
    for i in tl.static_range(COUNT):
        size = step_sizes(sizes[i], bias, SOFTPLUS)
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
            ahead = -i if REVERSE else i
            tl.store(out + ahead * strides.u.time, results[i].to(out.dtype.element_ty), mask=channel_mask)
    return h, total


@triton.jit
def sweep(
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
    UNROLL: tl.constexpr,
    STAGES: tl.constexpr,
    ROW: tl.constexpr,
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BY_PRODUCTS: tl.constexpr,
):
    """`advance` from step `start` to before step `stop`: by `UNROLL` steps, and the rest one by one."""
    whole = start + (stop - start) // UNROLL * UNROLL
    for s in tl.range(start, whole, UNROLL, num_stages=STAGES):
        h, total = advance(
            h, total, s, u, delta, z, out, B, C, skip, bias, rates, channel_mask, state_mask, channel, strides, length,
            UNROLL, ROW, REVERSE, SOFTPLUS, BY_PRODUCTS,
        )  # fmt: skip
    for s in tl.range(whole, stop):
        h, total = advance(
            h, total, s, u, delta, z, out, B, C, skip, bias, rates, channel_mask, state_mask, channel, strides, length,
            1, ROW, REVERSE, SOFTPLUS, 0,
        )  # fmt: skip
    return h, total


@triton.jit
def walk(
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
    block,
    entry,
    row,
    segment,
    segments,
    width,
    groups,
    ENDS_ALONE: tl.constexpr,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    UNROLL: tl.constexpr,
    STAGES: tl.constexpr,
    CHUNK: tl.constexpr,
    ROW: tl.constexpr,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    EVEN: tl.constexpr,
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BY_PRODUCTS: tl.constexpr,
):
    """One tile of one direction over one segment: the whole scan, or with `ENDS_ALONE` where it leads from zero.

    row  the place of (direction, batch entry) among those of the states in memory
    """
    group, channel, channel_mask, index, state_mask, kept_at, tile_mask, rates, bias = held(
        inputs, one, A_dim, A_state, block, width, groups, LANES, CHANNELS, STATES, PADDED, EVEN
    )
    dim = groups * width
    projection = (entry * groups + group) * length * ROW + index
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
            last_at = states_side_by_side(channel, index, one, STATES)
            h = load(inputs.initial_state + entry * dim * STATES + last_at, tile_mask)
    B = inputs.B + projection
    C = inputs.C + projection
    if ENDS_ALONE:
        h, total = sweep(
            h, total, start, stop, u, delta, None, None, B, None, None, bias, rates, channel_mask, state_mask,
            channel, strides, length, UNROLL, STAGES, ROW, REVERSE, SOFTPLUS, 0,
        )  # fmt: skip
        at = row * segments + segment
        leave_map(h, total, ends, totals, at, dim, channel, channel_mask, kept_at, tile_mask, STATES)
    else:
        if ends is not None:
            for before in tl.range(0, segment):
                at = row * segments + before
                h = crossed(h, ends, totals, at, dim, channel, channel_mask, kept_at, tile_mask, rates, STATES)
        out_at = out + entry * strides.u.batch
        if checkpoints is None:
            h, total = sweep(
                h, total, start, stop, u, delta, z, out_at, B, C, skip, bias, rates, channel_mask, state_mask,
                channel, strides, length, UNROLL, STAGES, ROW, REVERSE, SOFTPLUS, BY_PRODUCTS,
            )  # fmt: skip
        else:
            chunks = tl.cdiv(length, CHUNK)
            for first in tl.range(start, stop, CHUNK):
                kept = checkpoints + (row * chunks + first // CHUNK) * dim * STATES
                tl.store(kept + kept_at, h, mask=tile_mask)
                h, total = sweep(
                    h, total, first, tl.minimum(first + CHUNK, stop), u, delta, z, out_at, B, C, skip, bias, rates,
                    channel_mask, state_mask, channel, strides, length, UNROLL, STAGES, ROW, REVERSE, SOFTPLUS,
                    BY_PRODUCTS,
                )  # fmt: skip
        if stop == length:
            last_at = states_side_by_side(channel, index, one, STATES)
            tl.store(last + row * dim * STATES + last_at, h, mask=tile_mask)


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
    segments,
    one,
    A_dim,
    A_state,
    width,
    groups,
    ENDS_ALONE: tl.constexpr,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    UNROLL: tl.constexpr,
    STAGES: tl.constexpr,
    CHUNK: tl.constexpr,
    ROW: tl.constexpr,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    EVEN: tl.constexpr,
    BOTH: tl.constexpr,
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BY_PRODUCTS: tl.constexpr,
    BATCH_FIRST: tl.constexpr,
):
    """The scan of `first`, against time where it is to REVERSE; or of `first` along time and of `second` against it.

    out          an output like u for each direction, the forward one first
    last         (directions, batch, ...) last states; `checkpoints` (directions, batch, chunks, ...) or None
    ends         (directions, batch, segments, ...) and `totals` (directions, batch, segments, dim), or both None
    width        channels of one group
    """
    blocks = groups * tl.cdiv(width, LANES * CHANNELS)
    block, entry, segment, direction = place(blocks, batch, segments, BATCH_FIRST)
    row = direction * batch + entry
    if not BOTH:
        walk(
            first, out, last, checkpoints, ends, totals, strides, length, steps, one, A_dim, A_state, block, entry,
            row, segment, segments, width, groups, ENDS_ALONE, LANES, CHANNELS, UNROLL, STAGES, CHUNK, ROW, STATES,
            PADDED, EVEN, REVERSE, SOFTPLUS, BY_PRODUCTS,
        )  # fmt: skip
    elif direction == 0:
        walk(
            first, out, last, checkpoints, ends, totals, strides, length, steps, one, A_dim, A_state, block, entry,
            row, segment, segments, width, groups, ENDS_ALONE, LANES, CHANNELS, UNROLL, STAGES, CHUNK, ROW, STATES,
            PADDED, EVEN, False, SOFTPLUS, BY_PRODUCTS,
        )  # fmt: skip
    else:
        out += batch.to(tl.int64) * length * groups * width
        walk(
            second, out, last, checkpoints, ends, totals, strides, length, steps, one, A_dim, A_state, block, entry,
            row, segment, segments, width, groups, ENDS_ALONE, LANES, CHANNELS, UNROLL, STAGES, CHUNK, ROW, STATES,
            PADDED, EVEN, True, SOFTPLUS, BY_PRODUCTS,
        )  # fmt: skip
