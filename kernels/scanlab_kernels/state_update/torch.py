"""One decoding step of the scan, and of a whole Mamba mixer, in PyTorch: the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab_kernels.causal_conv1d.torch import causal_conv1d_update
from scanlab_kernels.checks import apart_from, expect_distinct, expect_no_overlap, expect_states
from scanlab_kernels.implementations import TORCH
from scanlab_kernels.state_update.op import call


@torch.no_grad()
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
    """Return the output of one time step; update the state."""
    if state_batch_indices is not None:
        live = state_batch_indices >= 0
        rows = state_batch_indices[live].long()
        expect_no_overlap("state", state)
        expect_distinct("state_batch_indices", rows)
        picked = state[rows]
        out = torch.zeros_like(x)
        gate = None if z is None else z[live]
        out[live] = selective_state_update(
            picked, x[live], dt[live], A, B[live], C[live], D, gate, dt_bias, dt_softplus, None, log_A
        )
        state[rows] = picked
        return out
    compute = torch.float64 if torch.float64 in (x.dtype, state.dtype, A.dtype) else torch.float32
    step, drive = dt.to(compute), x.to(compute)
    if dt_bias is not None:
        step = step + dt_bias.to(compute)
    if dt_softplus:
        step = F.softplus(step)
    wide_B, wide_C = B.to(compute), C.to(compute)
    if x.dim() == 3:
        wide_B, wide_C = (each.repeat_interleave(x.shape[1] // B.shape[1], dim=1) for each in (wide_B, wide_C))
    rates = -torch.exp(A.to(compute)) if log_A else A.to(compute)
    decay = torch.exp(step[..., None] * rates)
    h = state.to(compute) * decay + (step * drive)[..., None] * wide_B[..., None, :]
    y = (h @ wide_C[..., None])[..., 0]
    if D is not None:
        y = y + D.to(compute) * drive
    if z is not None:
        y = y * F.silu(z.to(compute))
    state.copy_(h)
    return y.to(x.dtype)


@torch.no_grad()
def mixer_step(*arguments: Any) -> Tensor:
    """Return one token after the convolution and the scan of a mixer; update both states, or neither and raise."""
    return compose_step(causal_conv1d_update, selective_state_update, *arguments)


def compose_step(
    conv_update: Callable[..., Tensor],
    state_update: Callable[..., Tensor],
    projected: Tensor,
    conv_state: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A_log: Tensor,
    D: Tensor,
) -> Tensor:
    """Return `mixer_step` by an implementation of `causal_conv1d_update` and one of `selective_state_update`."""
    batch = len(projected)
    expect_states(conv_state, state, (batch, len(conv_weight)), (batch, *A_log.shape), projected)
    # The convolution writes its state before the rest is read.
    projected, x_weight, dt_weight, A_log, D = (
        apart_from(conv_state, each) for each in (projected, x_weight, dt_weight, A_log, D)
    )
    dt_bias = apart_from(conv_state, dt_bias)
    x, z = projected.chunk(2, dim=1)
    u = conv_update(x, conv_state, conv_weight, conv_bias, None, None, True)
    rank, states = dt_weight.shape[1], A_log.shape[1]
    low_rank, B, C = F.linear(u, x_weight).split([rank, states, states], dim=1)
    delta = F.linear(low_rank, dt_weight)
    return state_update(state, u, delta, A_log, B, C, D, z, dt_bias, True, None, True)


backend = TORCH.backend("state_update", call, Path(__file__).parent, "torch.py", gradients=False)
