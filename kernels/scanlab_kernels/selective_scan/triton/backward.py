# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005, SIM102  (what Triton compiles has no starred tuples, and other rules for branches)
"""The backward scan on a GPU: the states of a chunk computed again from the one before it, then the steps in reverse.

With g[t] the gradient of y[t] and R[t] the gradient of h[t-1], which begins as that of the last state,

    G = g[t] C[t] + R[t+1]      grad_C[t] = sum over dim of g[t] h[t]      grad_B[t] = sum over dim of delta'[t] u[t] G
    R[t] = decay[t] G           w = R[t] h[t-1]                            grad_A += delta'[t] w
    grad_drive[t] = <B[t], G>   grad_delta'[t] = <A, w> + u[t] grad_drive[t]

The states of `HISTORY` steps are held in registers at a time. Those between them and the checkpoint come from a
sweep over the chunk that leaves every HISTORYth state in memory; its tile gives each thread all states of a channel,
which is the cheapest for a forward scan, while the tile of the way back shares the states out, so that the sums over
dim cross fewer threads. A program sums grad_B and grad_C over its own channels and writes them down beside those of
the other programs; nothing is added atomically, so that the same inputs give the same bits.

Where there are fewer programs than the chip can hold, `segments` cuts the length: see `triton_segments`, and for its
first pass `triton_adjoint`. The states of a segment need none: its first one is a checkpoint.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scanlab_kernels.gpu.math import LN_2, load, shrink, sigmoid, softplus
from scanlab_kernels.gpu.tile import held, over_channels, place, states_side_by_side, time_of
from scanlab_kernels.selective_scan.triton.forward import advance, sweep
from scanlab_kernels.selective_scan.triton.segments import crossed


@triton.jit
def retrace(
    reached,
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
    COUNT: tl.constexpr,
    ROW: tl.constexpr,
    STATES: tl.constexpr,
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """Through `COUNT` steps from step `s` on, last one first; `h` is the state before them."""
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
    B += t * ROW
    C += t * ROW
    grad_B += t * STATES
    grad_C += t * STATES
    for i in tl.static_range(COUNT):
        ahead = -i if REVERSE else i
        here = load(u + ahead * strides.u.time, channel_mask)
        x = load(delta + ahead * strides.u.time, channel_mask) + bias
        e = shrink(x)
        size = x
        if SOFTPLUS:
            size = softplus(x, e)
            slopes = slopes + (sigmoid(x, e),)
        project = load(B + ahead * ROW, state_mask)[None, :, None]
        decay = tl.exp2(size[:, None, :] * rates)
        h = decay * h + (size * here)[:, None, :] * project
        states = states + (h,)
        decays = decays + (decay,)
        inputs = inputs + (here,)
        sizes = sizes + (size,)
        ins = ins + (project,)
    for i in tl.static_range(COUNT - 1, -1, -1):
        ahead = -i if REVERSE else i
        at = ahead * strides.u.time
        weights = load(C + ahead * ROW, state_mask)[None, :, None]
        g = load(grad_out + at, channel_mask)
        if z is not None:
            gate = load(z + ahead * strides.z.time, channel_mask)
            open = sigmoid(gate, shrink(gate))
            y = tl.sum(states[i + 1] * weights, axis=1) + skip * inputs[i]
            slope = open * (1.0 + gate * (1.0 - open))
            tl.store(grad_z + at, (g * y * slope).to(grad_z.dtype.element_ty), mask=channel_mask)
            g = g * gate * open
        whole = g[:, None, :] * weights + reached
        by_C = over_channels(g[:, None, :] * states[i + 1])
        by_B = over_channels(whole * (sizes[i] * inputs[i])[:, None, :])
        tl.store(grad_C + ahead * STATES, by_C, mask=state_mask)
        tl.store(grad_B + ahead * STATES, by_B, mask=state_mask)
        by_drive = tl.sum(whole * ins[i], axis=1)
        reached = whole * decays[i]
        w = reached * states[i]
        grad_A += w * sizes[i][:, None, :]
        grad_D += g * inputs[i]
        tl.store(grad_u + at, (sizes[i] * by_drive + skip * g).to(grad_u.dtype.element_ty), mask=channel_mask)
        by_size = tl.sum(w * rates, axis=1) * LN_2 + inputs[i] * by_drive
        if SOFTPLUS:
            by_size *= slopes[i]
        grad_bias += by_size
        tl.store(grad_delta + at, by_size.to(grad_delta.dtype.element_ty), mask=channel_mask)
    return reached, grad_A, grad_D, grad_bias


@triton.jit
def leave_states(
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
    block,
    entry,
    width,
    groups,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    HISTORY: tl.constexpr,
    ROW: tl.constexpr,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    EVEN: tl.constexpr,
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """Write the state before every HISTORYth step from `first` to before `stop` to `scratch`."""
    group, channel, channel_mask, index, state_mask, kept_at, tile_mask, rates, bias = held(
        inputs, one, A_dim, A_state, block, width, groups, LANES, CHANNELS, STATES, PADDED, EVEN
    )
    dim = groups * width
    u = inputs.u + entry * strides.u.batch
    delta = inputs.delta + entry * strides.u.batch
    B = inputs.B + (entry * groups + group) * length * ROW + index
    h = load(checkpoint + kept_at, tile_mask)
    total = tl.zeros(channel.shape, tl.float32)
    for s in tl.range(first, stop, HISTORY):
        tl.store(scratch + (s - first) // HISTORY * dim * STATES + kept_at, h, mask=tile_mask)
        h, total = sweep(
            h, total, s, tl.minimum(s + HISTORY, stop), u, delta, None, None, B, None, None, bias, rates, channel_mask,
            state_mask, channel, strides, length, HISTORY, 1, ROW, REVERSE, SOFTPLUS, 0,
        )  # fmt: skip


@triton.jit
def walk(
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
    segments,
    one,
    A_dim,
    A_state,
    block,
    entry,
    row,
    segment,
    width,
    groups,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    FULL_LANES: tl.constexpr,
    CHUNK: tl.constexpr,
    HISTORY: tl.constexpr,
    ROW: tl.constexpr,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    EVEN: tl.constexpr,
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """One tile of one direction over one segment, from its last chunk to its first."""
    group, channel, channel_mask, index, state_mask, kept_at, tile_mask, rates, bias = held(
        inputs, one, A_dim, A_state, block, width, groups, LANES, CHANNELS, STATES, PADDED, EVEN
    )
    dim = groups * width
    skip = 0.0
    if inputs.D is not None:
        skip = load(inputs.D + channel, channel_mask)
    forth = entry * strides.u.batch
    u = inputs.u + forth
    delta = inputs.delta + forth
    g = grad_out + forth
    z = None
    grad_z = None
    grad_u = gradients.u + forth
    grad_delta = gradients.delta + forth
    if inputs.z is not None:
        z = inputs.z + entry * strides.z.batch
        grad_z = gradients.z + forth
    projection = (entry * groups + group) * length * ROW + index
    B = inputs.B + projection
    C = inputs.C + projection
    blocks = tl.cdiv(width, LANES * CHANNELS)
    partial = ((block % blocks * batch + entry) * groups + group) * length * STATES + index
    grad_B = gradients.B + partial
    grad_C = gradients.C + partial
    reached = tl.zeros(rates.shape, tl.float32)
    if grad_last is not None:
        last_at = states_side_by_side(channel, index, one, STATES)
        reached = load(grad_last + row * dim * STATES + last_at, tile_mask)
    if ends is not None:
        for over in tl.range(0, segments - 1 - segment):
            at = row * segments + segments - 1 - over
            reached = crossed(reached, ends, totals, at, dim, channel, channel_mask, kept_at, tile_mask, rates, STATES)
    grad_A = tl.zeros(rates.shape, tl.float32)
    grad_D = tl.zeros(channel.shape, tl.float32)
    grad_bias = tl.zeros(channel.shape, tl.float32)
    chunks = tl.cdiv(length, CHUNK)
    last = tl.minimum(segment * (steps // CHUNK) + steps // CHUNK, chunks) - 1
    for done in tl.range(0, last + 1 - segment * (steps // CHUNK)):
        chunk = last - done
        first = chunk * CHUNK
        stop = tl.minimum(first + CHUNK, length)
        checkpoint = checkpoints + (row * chunks + chunk) * dim * STATES
        starts = checkpoint
        if CHUNK > HISTORY:
            starts = scratch + (row * segments + segment) * (CHUNK // HISTORY) * dim * STATES
            tl.debug_barrier()
            leave_states(
                inputs, checkpoint, starts, first, stop, strides, length, one, A_dim, A_state, block, entry, width,
                groups, FULL_LANES, LANES * CHANNELS // FULL_LANES, HISTORY, ROW, STATES, PADDED, EVEN, REVERSE,
                SOFTPLUS,
            )  # fmt: skip
            tl.debug_barrier()
        whole = (stop - first) // HISTORY
        rest = first + whole * HISTORY
        for over in tl.range(0, stop - rest):
            h = load(starts + whole * dim * STATES + kept_at, tile_mask)
            total = tl.zeros(channel.shape, tl.float32)
            for s in tl.range(rest, stop - 1 - over):
                h, total = advance(
                    h, total, s, u, delta, None, None, B, None, None, bias, rates, channel_mask, state_mask, channel,
                    strides, length, 1, ROW, REVERSE, SOFTPLUS, 0,
                )  # fmt: skip
            reached, grad_A, grad_D, grad_bias = retrace(
                reached, grad_A, grad_D, grad_bias, h, stop - 1 - over, u, delta, z, B, C, skip, bias, rates, g,
                grad_u, grad_delta, grad_z, grad_B, grad_C, channel, channel_mask, state_mask, strides, length,
                1, ROW, STATES, REVERSE, SOFTPLUS,
            )  # fmt: skip
        for over in tl.range(0, whole):
            turn = whole - 1 - over
            h = load(starts + turn * dim * STATES + kept_at, tile_mask)
            reached, grad_A, grad_D, grad_bias = retrace(
                reached, grad_A, grad_D, grad_bias, h, first + turn * HISTORY, u, delta, z, B, C, skip, bias, rates, g,
                grad_u, grad_delta, grad_z, grad_B, grad_C, channel, channel_mask, state_mask, strides, length,
                HISTORY, ROW, STATES, REVERSE, SOFTPLUS,
            )  # fmt: skip
    part = entry * segments + segment
    tl.store(gradients.A + part * dim * STATES + kept_at, grad_A, mask=tile_mask)
    if inputs.D is not None:
        tl.store(gradients.D + part * dim + channel, grad_D, mask=channel_mask)
    if inputs.delta_bias is not None:
        tl.store(gradients.delta_bias + part * dim + channel, grad_bias, mask=channel_mask)
    if inputs.initial_state is not None:
        if segment == 0:
            last_at = states_side_by_side(channel, index, one, STATES)
            tl.store(gradients.initial_state + entry * dim * STATES + last_at, reached, mask=tile_mask)


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
    segments,
    one,
    A_dim,
    A_state,
    width,
    groups,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    FULL_LANES: tl.constexpr,
    CHUNK: tl.constexpr,
    HISTORY: tl.constexpr,
    ROW: tl.constexpr,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    EVEN: tl.constexpr,
    BOTH: tl.constexpr,
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BATCH_FIRST: tl.constexpr,
):
    """The gradients of the scan of `first`, or of `first` and `second`, which meet in one output.

    ..gradients  what is written: see `triton_launch.Gradients`
    grad_out     that of the output, laid out like u
    grad_last    (directions, batch, dim, state), that of the last states
    checkpoints  (directions, batch, chunks, state, dim); `scratch` (directions, batch, segments, ...) between two
    ends         (directions, batch, segments, ...) and `totals` (directions, batch, segments, dim), or both None
    FULL_LANES   lanes of the tile that sweeps over a chunk, of as many channels
    """
    blocks = groups * tl.cdiv(width, LANES * CHANNELS)
    block, entry, segment, direction = place(blocks, batch, segments, BATCH_FIRST)
    row = direction * batch + entry
    if not BOTH:
        walk(
            first, first_gradients, grad_out, grad_last, checkpoints, scratch, ends, totals, strides, batch, length,
            steps, segments, one, A_dim, A_state, block, entry, row, segment, width, groups, LANES, CHANNELS,
            FULL_LANES, CHUNK, HISTORY, ROW, STATES, PADDED, EVEN, REVERSE, SOFTPLUS,
        )  # fmt: skip
    elif direction == 0:
        walk(
            first, first_gradients, grad_out, grad_last, checkpoints, scratch, ends, totals, strides, batch, length,
            steps, segments, one, A_dim, A_state, block, entry, row, segment, width, groups, LANES, CHANNELS,
            FULL_LANES, CHUNK, HISTORY, ROW, STATES, PADDED, EVEN, False, SOFTPLUS,
        )  # fmt: skip
    else:
        walk(
            second, second_gradients, grad_out, grad_last, checkpoints, scratch, ends, totals, strides, batch, length,
            steps, segments, one, A_dim, A_state, block, entry, row, segment, width, groups, LANES, CHANNELS,
            FULL_LANES, CHUNK, HISTORY, ROW, STATES, PADDED, EVEN, True, SOFTPLUS,
        )  # fmt: skip
