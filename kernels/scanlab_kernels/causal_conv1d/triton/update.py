# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
"""Decoding steps of the short convolution: a program holds a block of channels with all of their state.

The host cannot check indices without waiting for the GPU: a row beyond the state is not touched, and its output is NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from scanlab_kernels.gpu.launch_cache import Launch, launch
from scanlab_kernels.gpu.math import load, shrink, sigmoid
from scanlab_kernels.gpu.tile import Axes

CHANNELS = 32  # of one program, which is one warp


@triton.jit
def slot_of(position, slots):
    """Return `position` modulo `slots`, also for negative positions."""
    return (position % slots + slots) % slots


@triton.jit
def step_kernel(
    x,
    state,
    weight,
    bias,
    positions,
    indices,
    out,
    x_axes,
    state_axes,
    out_axes,
    rows,
    steps,
    slots,
    dim,
    blocks,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the steps of a block of channels, and write their inputs to the state.

    positions: (batch,), the slot of the first step in a state that is a circular buffer; None if the state shifts.
    """
    program = tl.program_id(0)
    channel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = channel < dim
    entry = (program // blocks).to(tl.int64)
    row = entry
    if indices is not None:
        row = tl.load(indices + entry).to(tl.int64)
    out_at = out + entry * out_axes.batch + channel * out_axes.dim
    if (row >= 0) & (row < rows):
        x_at = x + entry * x_axes.batch + channel * x_axes.dim
        state_at = state + row * state_axes.batch + channel * state_axes.dim
        position = 0  # a state that shifts ends where a circular one begins
        if positions is not None:
            position = tl.load(positions + entry)
        for i in tl.range(0, steps):
            total = tl.zeros([BLOCK], tl.float32)
            if bias is not None:
                total += load(bias + channel, mask)
            for k in tl.static_range(WIDTH):
                t = i + k - (WIDTH - 1)
                new = load(x_at + t * x_axes.time, mask & (t >= 0))
                old = load(state_at + slot_of(position + t, slots) * state_axes.time, mask & (t < 0))
                total += load(weight + channel * WIDTH + k, mask) * tl.where(t < 0, old, new)
            if SILU:
                total *= sigmoid(total, shrink(total))
            tl.store(out_at + i * out_axes.time, total.to(out.dtype.element_ty), mask=mask)
        if positions is not None:
            tl.debug_barrier()  # all threads have read the values that are overwritten now
            for i in tl.range(tl.maximum(steps - slots, 0), steps):
                value = tl.load(x_at + i * x_axes.time, mask=mask)
                tl.store(state_at + slot_of(position + i, slots) * state_axes.time, value, mask=mask)
        else:
            slot = tl.arange(0, PADDED)[None, :]
            inside = mask[:, None] & (slot < slots)
            t = slot + steps - slots
            new = tl.load(x_at[:, None] + t * x_axes.time, mask=inside & (t >= 0), other=0.0)
            old = tl.load(state_at[:, None] + (slot + steps) * state_axes.time, mask=inside & (t < 0), other=0.0)
            tl.debug_barrier()  # all threads have read the values that are overwritten now
            tl.store(state_at[:, None] + slot * state_axes.time, tl.where(t < 0, old, new), mask=inside)
    else:
        nothing = tl.where(row < 0, 0.0, float("nan")) + tl.zeros([BLOCK], tl.float32)
        for i in tl.range(0, steps):
            tl.store(out_at + i * out_axes.time, nothing.to(out.dtype.element_ty), mask=mask)


def run(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor | None,
    indices: Tensor | None,
    silu: bool,
    out: Tensor,
) -> None:
    """Write `out` and update `state` in place; x and out are (batch, dim) or (batch, dim, steps)."""
    if x.dim() == 2:
        x, out = x[..., None], out[..., None]

    def make() -> Launch:
        batch, dim, steps = x.shape
        slots, blocks = state.shape[2], -(-dim // CHANNELS)
        numbers = {
            "x_axes": Axes(*x.stride()),
            "state_axes": Axes(*state.stride()),
            "out_axes": Axes(*out.stride()),
            "rows": len(state),
            "steps": steps,
            "slots": slots,
            "dim": dim,
            "blocks": blocks,
            "WIDTH": weight.shape[1],
            "PADDED": triton.next_power_of_2(max(1, slots)),
            "SILU": silu,
            "BLOCK": CHANNELS,
        }
        return Launch(step_kernel, blocks * batch, numbers)

    dense_bias = None if bias is None else bias.contiguous()
    launch((x, state, weight.contiguous(), dense_bias, positions, indices, out), ("causal_conv1d_update", silu), make)
