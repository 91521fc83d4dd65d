"""Preparation of the recurrence's operands (delta, groups, complex numbers), and its epilogue (skip and gate).

Everything is computed in float32, or in float64 for float64 inputs, and rounded once at the end, as in the CUDA kernel
(state-spaces/mamba@e9594ce, csrc/selective_scan). The official PyTorch reference gates in the dtype of z instead, which
is less accurate in half precision.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem


class Operands(NamedTuple):
    """Operands of the recurrence; channels is dim / groups, and time is the last axis.

    Attributes:
        u, delta: (batch, groups, channels, length), for example (64, 1, 384, 197); delta after bias and softplus.
        A: (groups, channels, state), for example (1, 384, 16).
        B, C: (batch or 1, groups, channels or 1, state, length), broadcast views; complex where A is.
        h: (batch, groups, channels, state), the state before the first step.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    h: Tensor


def operands(inputs: ScanInputs, problem: ScanProblem) -> Operands:
    """Return the operands of the recurrence in its arithmetic dtype, differentiably."""
    compute = torch.float64 if problem.dtype == "float64" else torch.float32
    grouped = (problem.groups, problem.dim // problem.groups)
    delta = inputs.delta.to(compute)
    if inputs.delta_bias is not None:
        delta = delta + inputs.delta_bias[:, None]
    if problem.delta_softplus:
        delta = F.softplus(delta)
    A = inputs.A.unflatten(0, grouped)
    if inputs.initial_state is None:
        h = A.new_zeros(()).expand(problem.batch, *A.shape)
    else:
        h = inputs.initial_state.unflatten(1, grouped)
    return Operands(
        u=inputs.u.to(compute).unflatten(1, grouped),
        delta=delta.unflatten(1, grouped),
        A=A,
        B=_projection(inputs.B, problem, compute),
        C=_projection(inputs.C, problem, compute),
        h=h,
    )


def _projection(values: Tensor, problem: ScanProblem, compute: torch.dtype) -> Tensor:
    if values.dim() == 2:
        constant: Tensor = values.unflatten(0, (problem.groups, -1))[None, ..., None]
        return constant.expand(-1, -1, -1, -1, problem.length)
    values = values.to(compute)
    if problem.complex_A:
        pairs = values.unflatten(-1, (problem.length, 2))
        values = torch.complex(pairs[..., 0], pairs[..., 1])  # a view would have to start at an even offset
    if values.dim() == 3:
        values = values[:, None].expand(-1, problem.groups, -1, -1)
    return values[:, :, None]


def epilogue(y: Tensor, last_state: Tensor, inputs: ScanInputs) -> ScanOutput:
    """Return the output of the scan: y + D u, gated by silu(z).

    Args:
        y: (batch, groups, channels, length), <C, h>; for a complex A the complex inner product.
        last_state: (batch, groups, channels, state).
        inputs: The inputs of the scan.
    """
    if y.is_complex():
        y = 2.0 * y.real
    y = y.flatten(1, 2)
    if inputs.D is not None:
        y = y + inputs.D[:, None] * inputs.u
    if inputs.z is not None:
        y = y * F.silu(inputs.z.to(y.dtype))
    return ScanOutput(y.to(inputs.u.dtype), last_state.flatten(1, 2))
