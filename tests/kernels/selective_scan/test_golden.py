"""Backends against the official code: outputs, last states and gradients that it computed in float64."""

import pytest
import torch

from helpers import golden_ops
from scanlab.contract import registry
from scanlab.contract.problem import ScanInputs
from scanlab.contract.verify import relative_error

# Of the official float32 scan's distance from the same numbers, and of what float64 sums round.
TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-12}

# Without `compiled`, which builds code for each shape: its own test compares it with the reference.
BACKENDS = ("reference", "two_phase", "cpp_torch", "chunked", "associative", "native")


def cases():
    for name in BACKENDS:
        for case in golden_ops.CASES:
            for dtype in TOLERANCES:
                backend = registry.get(name)
                problem = golden_ops.problem(case, dtype)
                if backend.rejects(problem.replace(gradients=False)) is None:
                    computed = problem.replace(gradients=problem.gradients and backend.capabilities.gradients)
                    yield pytest.param(backend, case, dtype, computed, id=f"{name}-{case}-{problem.dtype}")


@pytest.mark.parametrize("case", golden_ops.CASES)
def test_the_recipe_draws_the_inputs_that_the_official_code_saw(case):
    for name, values in golden_ops.drawn(case).items():
        expected = golden_ops.VALUES[f"{case}/incheck_{name}"]
        assert golden_ops.RECIPE.checksum(values) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("backend", "case", "dtype", "problem"), list(cases()))
def test_agrees_with_the_official_code(backend, case, dtype, problem):
    if backend.unavailable() is not None:
        pytest.skip(f"{backend.name} cannot run here: {backend.unavailable()}")
    given, gradient = golden_ops.inputs(case, dtype)
    leaves = ScanInputs(**{name: tensor.requires_grad_() for name, tensor in given.tensors().items()})
    with torch.set_grad_enabled(problem.gradients):
        out, last_state = backend.build(problem)(leaves)
    observed = {"last_state": last_state}
    step = golden_ops.CASES[case]["out_sub_step"]
    observed["out" if step is None else "out_sub"] = out[:, ::step]
    if problem.gradients:
        tensors = leaves.tensors()
        gradients = torch.autograd.grad(out, list(tensors.values()), gradient)
        observed |= {f"d{name}": value for name, value in zip(tensors, gradients, strict=True)}
    for name, tensor in observed.items():
        truth = torch.from_numpy(golden_ops.VALUES[f"{case}/{name}"])
        assert relative_error(tensor.detach(), truth) <= TOLERANCES[dtype], name
