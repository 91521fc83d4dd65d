"""Scans of tensors without elements, as torch's own ops treat them; no backend is asked for one.

Each has no output, and leaves the states as they were before it. Every gradient is zero.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from scanlab.contract.problem import ScanInputs, ScanOutput
from scanlab_kernels.cross_scan_2d import problem as cross_scan_problem
from scanlab_kernels.cross_scan_2d.problem import CrossScanInputs
from scanlab_kernels.ssd import problem as ssd_problem
from scanlab_kernels.ssd.problem import SsdInputs, SsdOutput


def scan_empty(*inputs: ScanInputs) -> ScanOutput:
    """Return the scan of inputs whose batch, dim or length is 0."""
    zero = _zero(tensor for each in inputs for tensor in each.tensors().values())
    states = [_state_before(each) + zero for each in inputs]
    return ScanOutput(inputs[0].u + zero, states[0] if len(states) == 1 else torch.stack(states))


def ssd_empty(inputs: SsdInputs) -> SsdOutput:
    """Return the scan of Mamba-2 of inputs whose x has a size of 0.

    Raises:
        ProblemError: The tensors do not fit together.
    """
    ssd_problem.check(inputs)
    zero, state = _zero(inputs), inputs.initial_state
    if state is None:
        batch, _, heads, head_dim = inputs.x.shape
        state = inputs.A.new_zeros(batch, heads, head_dim, inputs.B.shape[-1])
    return SsdOutput(inputs.x + zero, state + zero)


def cross_scan_empty(inputs: CrossScanInputs) -> Tensor:
    """Return the scan in four directions of a feature map that has a size of 0.

    Raises:
        ProblemError: The tensors do not fit together.
    """
    cross_scan_problem.check(inputs)
    return inputs.u + _zero(inputs)


def _zero(tensors: Iterable[Tensor | None]) -> Tensor:
    """Return a zero that depends on all of these, for autograd."""
    sums = [each.narrow(0, 0, 0).sum().real for each in tensors if each is not None]
    return sum(sums[1:], sums[0])


def _state_before(inputs: ScanInputs) -> Tensor:
    if inputs.initial_state is not None:
        return inputs.initial_state
    return inputs.A.new_zeros((inputs.u.shape[0], *inputs.A.shape))
