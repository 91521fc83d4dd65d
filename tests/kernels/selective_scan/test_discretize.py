"""Operands that every implementation in torch reads."""

from __future__ import annotations

import torch

from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem, make_inputs


def test_interleaved_numbers_may_begin_anywhere_in_memory() -> None:
    problem = ScanProblem(batch=1, dim=2, length=3, complex_A=True)
    (inputs,) = make_inputs(problem)
    odd = torch.cat((torch.zeros(1), inputs.B.flatten()))[1:].view_as(inputs.B)
    scan = registry.get("reference").build(problem)
    assert odd.storage_offset() == 1
    assert torch.equal(scan(inputs._replace(B=odd)).out, scan(inputs).out)
