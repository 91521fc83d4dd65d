"""The scan of tensors without elements, as torch's own ops treat them; no backend is asked for one."""

from __future__ import annotations

import torch
from torch import Tensor

from scanlab.contract.problem import ScanInputs, ScanOutput


def scan_empty(*inputs: ScanInputs) -> ScanOutput:
    """Return the scan of inputs whose batch, dim or length is 0: no output, and the states as they were before it.

    Differentiable: every gradient is zero.
    """
    sums = [tensor.narrow(0, 0, 0).sum() for each in inputs for tensor in each.tensors().values()]
    zero = sum((value.real for value in sums), torch.zeros((), device=inputs[0].u.device))
    states = [_state_before(each) + zero for each in inputs]
    return ScanOutput(inputs[0].u + zero, states[0] if len(states) == 1 else torch.stack(states))


def _state_before(inputs: ScanInputs) -> Tensor:
    if inputs.initial_state is not None:
        return inputs.initial_state
    return inputs.A.new_zeros((inputs.u.shape[0], *inputs.A.shape))
