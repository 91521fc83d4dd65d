# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005, SIM102  (Triton has no starred tuples, and other rules for branches)
"""Backward scan: the states of a chunk are computed again from its checkpoint, then its steps are taken in reverse.

With g[t] the gradient of y[t] and R[t] the adjoint (the gradient of h[t-1], at first that of the last state),

    G = g[t] C[t] + R[t+1]      grad_C[t] = sum over dim of g[t] h[t]      grad_B[t] = sum over dim of delta'[t] u[t] G
    R[t] = decay[t] G           w = R[t] h[t-1]                            grad_A += delta'[t] w
    grad_drive[t] = <B[t], G>   grad_delta'[t] = <A, w> + u[t] grad_drive[t]

The states of `tile.unroll` steps are kept in registers at a time. To get there from the checkpoint, a forward scan over
the chunk writes every unroll-th state to memory. Its tile gives each thread all states of a channel, which is cheapest
for a forward scan; the tile of the backward scan divides the states among threads, so that sums over dim cross fewer.
A program sums grad_B and grad_C over its own channels and writes them beside those of the other programs. Nothing is
added atomically, so that the same inputs give the same bits.

Where there are too few programs to fill the GPU the length is cut into segments: see `segments.py`, and for the first
pass `backward_state_pass.py`. States need no such pass: the first state of a segment is a checkpoint.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scanlab_kernels.gpu.math import LN_2, load, shrink, sigmoid, softplus
from scanlab_kernels.selective_scan.triton.forward import forward_steps, scan_range
from scanlab_kernels.selective_scan.triton.segments import apply_segment_map
from scanlab_kernels.selective_scan.triton.tile import (
    load_tile,
    locate_program,
    state_offsets,
    sum_over_channels,
    time_of,
)


@triton.jit
def backward_steps(
    adjoint,
    grad_A,
    grad_D,
    grad_bias,
    h,
    s,
    u,
    delta,
    z,
    B,
    C,
    skip,
    bias,
    rates,
    grad_out,
    grad_u,
    grad_delta,
    grad_z,
    grad_B,
    grad_C,
    channel,
    channel_mask,
    state_mask,
    strides,
    length,
    tile,
    COUNT: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Differentiate `COUNT` steps from step `s` on, the last one first; `h` is the state before them."""
    states = (h,)
    decays = ()
    inputs = ()
    sizes = ()
    slopes = ()
    ins = ()
    t = time_of(s, length, REVERSE)
    at = t * strides.u.time + channel * strides.u.dim
    u += at
    delta += at
    grad_out += at
    grad_u += at
    grad_delta += at
    if z is not None:
        z += t * strides.z.time + channel * strides.z.dim
        grad_z += at
    B += t * tile.row
    C += t * tile.row
    grad_B += t * tile.states
    grad_C += t * tile.states
    for i in tl.static_range(COUNT):
        step = -i if REVERSE else i
        here = load(u + step * strides.u.time, channel_mask)
        x = load(delta + step * strides.u.time, channel_mask) + bias
        e = shrink(x)
        size = x
        if tile.softplus:
            size = softplus(x, e)
            slopes = slopes + (sigmoid(x, e),)
        project = load(B + step * tile.row, state_mask)[None, :, None]
        decay = tl.exp2(size[:, None, :] * rates)
        h = decay * h + (size * here)[:, None, :] * project
        states = states + (h,)
        decays = decays + (decay,)
        inputs = inputs + (here,)
        sizes = sizes + (size,)
        ins = ins + (project,)
    for i in tl.static_range(COUNT - 1, -1, -1):
        step = -i if REVERSE else i
        at = step * strides.u.time
        weights = load(C + step * tile.row, state_mask)[None, :, None]
        g = load(grad_out + at, channel_mask)
        if z is not None:
            gate = load(z + step * strides.z.time, channel_mask)
            open = sigmoid(gate, shrink(gate))
            y = tl.sum(states[i + 1] * weights, axis=1) + skip * inputs[i]
            slope = open * (1.0 + gate * (1.0 - open))
            tl.store(grad_z + at, (g * y * slope).to(grad_z.dtype.element_ty), mask=channel_mask)
            g = g * gate * open
        G = g[:, None, :] * weights + adjoint
        by_C = sum_over_channels(g[:, None, :] * states[i + 1])
        by_B = sum_over_channels(G * (sizes[i] * inputs[i])[:, None, :])
        tl.store(grad_C + step * tile.states, by_C, mask=state_mask)
        tl.store(grad_B + step * tile.states, by_B, mask=state_mask)
        by_drive = tl.sum(G * ins[i], axis=1)
        adjoint = G * decays[i]
        w = adjoint * states[i]
        grad_A += w * sizes[i][:, None, :]
        grad_D += g * inputs[i]
        tl.store(grad_u + at, (sizes[i] * by_drive + skip * g).to(grad_u.dtype.element_ty), mask=channel_mask)
        by_size = tl.sum(w * rates, axis=1) * LN_2 + inputs[i] * by_drive
        if tile.softplus:
            by_size *= slopes[i]
        grad_bias += by_size
        tl.store(grad_delta + at, by_size.to(grad_delta.dtype.element_ty), mask=channel_mask)
    return adjoint, grad_A, grad_D, grad_bias


@triton.jit
def recompute_states(
    inputs,
    checkpoint,
    scratch,
    first,
    stop,
    strides,
    length,
    one,
    A_dim,
    A_state,
    tile,
    block,
    entry,
    width,
    groups,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Write the states before every unroll-th step of [first, stop) to `scratch`."""
    group, channel, channel_mask, index, state_mask, tile_at, tile_mask, rates, bias = load_tile(
        inputs, tile, one, A_dim, A_state, block, width, groups, LANES, CHANNELS
    )
    dim = groups * width
    u = inputs.u + entry * strides.u.batch
    delta = inputs.delta + entry * strides.u.batch
    B = inputs.B + (entry * groups + group) * length * tile.row + index
    h = load(checkpoint + tile_at, tile_mask)
    total = tl.zeros(channel.shape, tl.float32)
    for s in tl.range(first, stop, tile.unroll):
        tl.store(scratch + (s - first) // tile.unroll * dim * tile.states + tile_at, h, mask=tile_mask)
        h, total = scan_range(
            h, total, s, tl.minimum(s + tile.unroll, stop), u, delta, None, None, B, None, None, bias, rates,
            channel_mask, state_mask, channel, strides, length, tile, tile.unroll, 1, REVERSE, 0,
        )  # fmt: skip


@triton.jit
def scan_tile(
    inputs,
    gradients,
    grad_out,
    grad_last,
    checkpoints,
    scratch,
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
    block,
    entry,
    row,
    segment,
    width,
    groups,
    FULL_LANES: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Differentiate one tile of one direction over one segment, from its last chunk to its first."""
    group, channel, channel_mask, index, state_mask, tile_at, tile_mask, rates, bias = load_tile(
        inputs, tile, one, A_dim, A_state, block, width, groups, tile.lanes, tile.channels
    )
    dim = groups * width
    skip = 0.0
    if inputs.D is not None:
        skip = load(inputs.D + channel, channel_mask)
    entry_at = entry * strides.u.batch
    u = inputs.u + entry_at
    delta = inputs.delta + entry_at
    g = grad_out + entry_at
    z = None
    grad_z = None
    grad_u = gradients.u + entry_at
    grad_delta = gradients.delta + entry_at
    if inputs.z is not None:
        z = inputs.z + entry * strides.z.batch
        grad_z = gradients.z + entry_at
    projection = (entry * groups + group) * length * tile.row + index
    B = inputs.B + projection
    C = inputs.C + projection
    blocks = tl.cdiv(width, tile.lanes * tile.channels)
    partial = ((block % blocks * batch + entry) * groups + group) * length * tile.states + index
    grad_B = gradients.B + partial
    grad_C = gradients.C + partial
    adjoint = tl.zeros(rates.shape, tl.float32)
    if grad_last is not None:
        last_at = state_offsets(channel, index, one, tile.states)
        adjoint = load(grad_last + row * dim * tile.states + last_at, tile_mask)
    if ends is not None:
        for over in tl.range(0, segments - 1 - segment):
            at = row * segments + segments - 1 - over
            adjoint = apply_segment_map(
                adjoint, ends, totals, at, dim, channel, channel_mask, tile_at, tile_mask, rates, tile.states
            )
    grad_A = tl.zeros(rates.shape, tl.float32)
    grad_D = tl.zeros(channel.shape, tl.float32)
    grad_bias = tl.zeros(channel.shape, tl.float32)
    chunks = tl.cdiv(length, tile.chunk)
    chunks_of_segment = steps // tile.chunk
    last = tl.minimum(segment * chunks_of_segment + chunks_of_segment, chunks) - 1
    for done in tl.range(0, last + 1 - segment * chunks_of_segment):
        chunk = last - done
        first = chunk * tile.chunk
        stop = tl.minimum(first + tile.chunk, length)
        checkpoint = checkpoints + (row * chunks + chunk) * dim * tile.states
        starts = checkpoint
        if tile.chunk > tile.unroll:
            starts = scratch + (row * segments + segment) * (tile.chunk // tile.unroll) * dim * tile.states
            tl.debug_barrier()
            recompute_states(
                inputs, checkpoint, starts, first, stop, strides, length, one, A_dim, A_state, tile, block, entry,
                width, groups, FULL_LANES, tile.lanes * tile.channels // FULL_LANES, REVERSE,
            )  # fmt: skip
            tl.debug_barrier()
        whole = (stop - first) // tile.unroll
        rest = first + whole * tile.unroll
        for over in tl.range(0, stop - rest):
            h = load(starts + whole * dim * tile.states + tile_at, tile_mask)
            total = tl.zeros(channel.shape, tl.float32)
            for s in tl.range(rest, stop - 1 - over):
                h, total = forward_steps(
                    h, total, s, u, delta, None, None, B, None, None, bias, rates, channel_mask, state_mask, channel,
                    strides, length, tile, 1, REVERSE, 0,
                )  # fmt: skip
            adjoint, grad_A, grad_D, grad_bias = backward_steps(
                adjoint, grad_A, grad_D, grad_bias, h, stop - 1 - over, u, delta, z, B, C, skip, bias, rates, g, grad_u,
                grad_delta, grad_z, grad_B, grad_C, channel, channel_mask, state_mask, strides, length, tile, 1,
                REVERSE,
            )  # fmt: skip
        for over in tl.range(0, whole):
            turn = whole - 1 - over
            h = load(starts + turn * dim * tile.states + tile_at, tile_mask)
            adjoint, grad_A, grad_D, grad_bias = backward_steps(
                adjoint, grad_A, grad_D, grad_bias, h, first + turn * tile.unroll, u, delta, z, B, C, skip, bias, rates,
                g, grad_u, grad_delta, grad_z, grad_B, grad_C, channel, channel_mask, state_mask, strides, length, tile,
                tile.unroll, REVERSE,
            )  # fmt: skip
    part = entry * segments + segment
    tl.store(gradients.A + part * dim * tile.states + tile_at, grad_A, mask=tile_mask)
    if inputs.D is not None:
        tl.store(gradients.D + part * dim + channel, grad_D, mask=channel_mask)
    if inputs.delta_bias is not None:
        tl.store(gradients.delta_bias + part * dim + channel, grad_bias, mask=channel_mask)
    if inputs.initial_state is not None:
        if segment == 0:
            last_at = state_offsets(channel, index, one, tile.states)
            tl.store(gradients.initial_state + entry * dim * tile.states + last_at, adjoint, mask=tile_mask)


@triton.jit(do_not_specialize=["batch", "length", "steps", "one", "A_dim", "A_state"])
def scan(
    first,
    second,
    first_gradients,
    second_gradients,
    grad_out,
    grad_last,
    checkpoints,
    scratch,
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
    FULL_LANES: tl.constexpr,
    BOTH: tl.constexpr,
    REVERSE: tl.constexpr,
    BATCH_FIRST: tl.constexpr,
):
    """Compute the gradients of the scan of `first`, or of `first` and `second`, whose outputs are summed.

    first_gradients, second_gradients: `launch.Gradients`, written.
    grad_out: gradient of the output, in the strides of u.
    grad_last: (directions, batch, dim, state), gradient of the last states, or None.
    checkpoints: (directions, batch, chunks, state, dim).
    scratch: (directions, batch, segments, chunk / unroll, state, dim), states within a chunk.
    ends, totals: (directions, batch, segments, state, dim) and (directions, batch, segments, dim), or None.
    FULL_LANES: lanes of the tile that recomputes states, which has as many channels.
    """
    blocks = groups * tl.cdiv(width, tile.lanes * tile.channels)
    block, entry, segment, direction = locate_program(blocks, batch, segments, BATCH_FIRST)
    row = direction * batch + entry
    if BOTH:
        if direction == 1:
            scan_tile(
                second, second_gradients, grad_out, grad_last, checkpoints, scratch, ends, totals, strides, batch,
                length, steps, one, A_dim, A_state, tile, segments, block, entry, row, segment, width, groups,
                FULL_LANES, True,
            )  # fmt: skip
            return
    scan_tile(
        first, first_gradients, grad_out, grad_last, checkpoints, scratch, ends, totals, strides, batch, length, steps,
        one, A_dim, A_state, tile, segments, block, entry, row, segment, width, groups, FULL_LANES, REVERSE,
    )  # fmt: skip
