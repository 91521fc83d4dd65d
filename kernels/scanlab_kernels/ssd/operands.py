"""Operands of the recurrence in its arithmetic dtype, and the epilogue: skip and gate."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab_kernels.ssd.problem import NO_LIMIT, Limits, SsdInputs, SsdOutput, SsdProblem


class Operands(NamedTuple):
    """Operands of h[t] = exp(log_decay[t]) h[t-1] + drive[t] B[t]^T, heads split as (groups, heads of a group).

    Attributes:
        drive: (batch, length, groups, heads, head_dim), dt' x; for example (1, 512, 1, 64, 64).
        log_decay: (batch, length, groups, heads), dt' A; -inf where a new sequence begins.
        B, C: (batch, length, groups, state).
        h: (batch, groups, state, heads, head_dim), the state before the first step.
    """

    drive: Tensor
    log_decay: Tensor
    B: Tensor
    C: Tensor
    h: Tensor


def new_sequence(inputs: SsdInputs) -> Tensor | None:
    """Return where a step belongs to another sequence than the step before, (batch, length); None without seq_idx."""
    seq_idx = inputs.seq_idx
    return None if seq_idx is None else seq_idx.diff(dim=1, prepend=torch.zeros_like(seq_idx[:, :1])) != 0


def discretize_dt(inputs: SsdInputs, dt_softplus: bool, dt_limit: Limits) -> Tensor:
    """Return dt', (batch, length, heads)."""
    dt = inputs.dt if inputs.dt_bias is None else inputs.dt + inputs.dt_bias
    if dt_softplus:
        dt = F.softplus(dt)
        if tuple(dt_limit) == NO_LIMIT:
            return dt  # softplus is positive
    return dt.clamp(*dt_limit)


def operands(inputs: SsdInputs, problem: SsdProblem, is_new: Tensor | None) -> Operands:
    """Return the operands of the recurrence in float32, or float64 for float64, differentiably.

    Args:
        inputs: The inputs, or those of a part of the length; seq_idx is not read.
        problem: The problem that they pose.
        is_new: Steps that begin a new sequence, see `new_sequence`.
    """
    compute = inputs.A.dtype
    grouped = (problem.groups, problem.heads // problem.groups)
    dt = discretize_dt(inputs, problem.dt_softplus, problem.limits)
    log_decay = dt * inputs.A
    if is_new is not None:
        log_decay = log_decay.masked_fill(is_new[..., None], -math.inf)
    h = inputs.initial_state
    if h is None:
        h = inputs.A.new_zeros(problem.batch, problem.heads, problem.head_dim, problem.state)
    return Operands(
        drive=(dt[..., None] * inputs.x.to(compute)).unflatten(2, grouped),
        log_decay=log_decay.unflatten(2, grouped),
        B=inputs.B.to(compute),
        C=inputs.C.to(compute),
        h=h.unflatten(1, grouped).movedim(-1, 2),
    )


def epilogue(y: Tensor, h: Tensor, inputs: SsdInputs) -> SsdOutput:
    """Return the output: y + D x, gated by silu(z).

    Args:
        y: (batch, length, groups, heads, head_dim), <C, h>.
        h: (batch, groups, state, heads, head_dim), the state after the last step.
        inputs: The inputs of the call.
    """
    y = y.flatten(2, 3)
    if inputs.D is not None:
        y = y + (inputs.D if inputs.D.dim() == 2 else inputs.D[:, None]) * inputs.x
    if inputs.z is not None:
        y = y * F.silu(inputs.z.to(y.dtype))
    return SsdOutput(y.to(inputs.x.dtype), h.movedim(2, -1).flatten(1, 2))
