"""GPU kernels in the interpreter against results of the official code in float64."""

import pytest
import torch

from helpers import golden_ops
from scanlab.contract.problem import ScanInputs
from scanlab.contract.verify import relative_error
from scanlab_kernels.selective_scan.triton import backend as triton

# Cases small enough for the interpreter; whether their gradients are compared too.
CASES = {"c03_min_1111": True, "c15_no_D": False, "c23_growing_A_positive": True}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_official_code(case):
    given, gradient = golden_ops.inputs(case, torch.float32)
    leaves = ScanInputs(**{name: tensor.requires_grad_() for name, tensor in given.tensors().items()})
    problem = golden_ops.problem(case, torch.float32).replace(gradients=CASES[case])
    with torch.set_grad_enabled(problem.gradients):
        out, last_state = triton.backend.build(problem)(leaves)
    observed = {"out": out, "last_state": last_state}
    if problem.gradients:
        tensors = leaves.tensors()
        found = torch.autograd.grad(out, list(tensors.values()), gradient)
        observed |= {f"d{name}": value for name, value in zip(tensors, found, strict=True)}
    for name, tensor in observed.items():
        truth = torch.from_numpy(golden_ops.VALUES[f"{case}/{name}"])
        assert relative_error(tensor.detach(), truth) <= 2e-5, name
