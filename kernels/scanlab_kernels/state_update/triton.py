# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
"""Triton kernel of one decoding step of the selective scan: a program holds a block of channels with all their states.

The host cannot check indices without waiting for the GPU: a row beyond the state is not touched, and its output is NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from scanlab_kernels.causal_conv1d.triton.ops import causal_conv1d_update
from scanlab_kernels.checks import apart_from, expect_no_overlap
from scanlab_kernels.gpu.launch_cache import Launch, launch
from scanlab_kernels.gpu.math import LOG2_E, load, shrink, sigmoid, softplus
from scanlab_kernels.gpu.registration import changed, define
from scanlab_kernels.gpu.tile import states_of
from scanlab_kernels.state_update.registration import empty_mixer_output, empty_output
from scanlab_kernels.state_update.torch import compose_step

TILE = 512  # states of one program, which is one warp


class Strides(NamedTuple):
    """Strides of each tensor, with an axis of heads; None for absent ones.

    Shape:
        state: (row, head, dim, state). x, dt, z, out: (batch, head, dim). A: (head, dim, state).
        B, C: (batch, group, state). D, dt_bias: (head, dim).
    """

    state: tuple[int, ...] | None
    x: tuple[int, ...] | None
    dt: tuple[int, ...] | None
    A: tuple[int, ...] | None
    B: tuple[int, ...] | None
    C: tuple[int, ...] | None
    D: tuple[int, ...] | None
    z: tuple[int, ...] | None
    dt_bias: tuple[int, ...] | None
    out: tuple[int, ...] | None


@triton.jit
def step_kernel(
    state,
    x,
    dt,
    A,
    B,
    C,
    D,
    z,
    dt_bias,
    indices,
    out,
    strides,
    rows,
    heads,
    group,
    dim,
    blocks,
    SOFTPLUS: tl.constexpr,
    LOG_A: tl.constexpr,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute one step of a block of channels of one head, and write their states.

    strides: `Strides`. group: heads of one group of B and C.
    """
    program = tl.program_id(0)
    channel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    head = program // blocks % heads
    entry = (program // blocks // heads).to(tl.int64)
    index, state_mask = states_of(STATES, PADDED)
    mask = channel < dim
    tile_mask = mask[:, None] & state_mask[None, :]
    row = entry
    if indices is not None:
        row = tl.load(indices + entry).to(tl.int64)
    out_at = out + entry * strides.out[0] + head * strides.out[1] + channel * strides.out[2]
    if (row >= 0) & (row < rows):
        state_at = (
            state
            + row * strides.state[0]
            + head * strides.state[1]
            + channel[:, None] * strides.state[2]
            + index[None, :] * strides.state[3]
        )
        drive = load(x + entry * strides.x[0] + head * strides.x[1] + channel * strides.x[2], mask)
        size = load(dt + entry * strides.dt[0] + head * strides.dt[1] + channel * strides.dt[2], mask)
        if dt_bias is not None:
            size += load(dt_bias + head * strides.dt_bias[0] + channel * strides.dt_bias[1], mask)
        if SOFTPLUS:
            size = softplus(size, shrink(size))
        rates_at = A + head * strides.A[0] + channel[:, None] * strides.A[1] + index[None, :] * strides.A[2]
        rates = load(rates_at, tile_mask)
        if LOG_A:
            rates = -tl.exp2(rates * LOG2_E)
        of_group = head // group
        project = load(B + entry * strides.B[0] + of_group * strides.B[1] + index * strides.B[2], state_mask)
        weights = load(C + entry * strides.C[0] + of_group * strides.C[1] + index * strides.C[2], state_mask)
        h = load(state_at, tile_mask) * tl.exp2(size[:, None] * (rates * LOG2_E))
        h += (size * drive)[:, None] * project[None, :]
        y = tl.sum(h * weights[None, :], axis=1)
        if D is not None:
            y += load(D + head * strides.D[0] + channel * strides.D[1], mask) * drive
        if z is not None:
            gate = load(z + entry * strides.z[0] + head * strides.z[1] + channel * strides.z[2], mask)
            y *= gate * sigmoid(gate, shrink(gate))
        tl.store(out_at, y.to(out.dtype.element_ty), mask=mask)
        tl.store(state_at, h.to(state.dtype.element_ty), mask=tile_mask)
    else:
        nothing = tl.where(row < 0, 0.0, float("nan")) + tl.zeros([BLOCK], tl.float32)
        tl.store(out_at, nothing.to(out.dtype.element_ty), mask=mask)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state_batch_indices: Tensor | None,
    log_A: bool,
) -> Tensor:
    """Return one step of the scan, and update the state in place; x is (batch, dim) or (batch, heads, dim)."""
    expect_no_overlap("state", state)
    x, dt, A, B, C = (apart_from(state, each) for each in (x, dt, A, B, C))
    D, z, dt_bias = (apart_from(state, each) for each in (D, z, dt_bias))
    out = torch.empty_like(x)

    def make() -> Launch:
        one_head = x.dim() == 2

        def strides_of(tensor: Tensor | None, head_axis: int) -> tuple[int, ...] | None:
            if tensor is None:
                return None
            return (tensor.unsqueeze(head_axis) if one_head else tensor).stride()

        by_batch = {"state": state, "x": x, "dt": dt, "B": B, "C": C, "z": z, "out": out}
        by_head = {"A": A, "D": D, "dt_bias": dt_bias}
        strides = {name: strides_of(tensor, 1) for name, tensor in by_batch.items()}
        strides |= {name: strides_of(tensor, 0) for name, tensor in by_head.items()}
        dim, states = A.shape[-2:]
        heads, groups = (1, 1) if one_head else (x.shape[1], B.shape[1])
        padded = triton.next_power_of_2(states)
        block = max(1, TILE // padded)
        blocks = -(-dim // block)
        numbers = {
            "strides": Strides(**strides),
            "rows": len(state),
            "heads": heads,
            "group": heads // groups,
            "dim": dim,
            "blocks": blocks,
            "SOFTPLUS": dt_softplus,
            "LOG_A": log_A,
            "STATES": states,
            "PADDED": padded,
            "BLOCK": block,
        }
        return Launch(step_kernel, blocks * heads * len(x), numbers)

    tensors = (state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices, out)
    launch(tensors, ("selective_state_update", dt_softplus, log_A), make)
    changed(state)
    return out


def mixer_step(*arguments: Any) -> Tensor:
    """Return one token through a whole mixer, and update both of its states in place, or neither and raise."""
    return compose_step(causal_conv1d_update, selective_state_update, *arguments)


define(
    "scanlab_mixer_triton::selective_state_update(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C,"
    " Tensor? D, Tensor? z, Tensor? dt_bias, bool dt_softplus, Tensor? state_batch_indices, bool log_A) -> Tensor",
    selective_state_update,
    empty_output,
)
define(
    "scanlab_mixer_triton::mixer_step(Tensor projected, Tensor(a!) conv_state, Tensor(b!) state, Tensor conv_weight,"
    " Tensor? conv_bias, Tensor x_weight, Tensor dt_weight, Tensor? dt_bias, Tensor A_log, Tensor D) -> Tensor",
    mixer_step,
    empty_mixer_output,
)
