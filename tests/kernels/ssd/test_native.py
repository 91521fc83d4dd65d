"""The C++ kernel of ssd on every instruction set. Run with: pytest tests/kernels/ssd/test_native.py"""

from __future__ import annotations

import pytest
import torch

from helpers.instruction_sets import INSTRUCTION_SETS
from scanlab.contract.cpu import torch_threads
from scanlab.contract.verify import reference_outputs, verify
from scanlab_kernels.ssd.native.backend import backend, extension
from scanlab_kernels.ssd.op import PROBES
from scanlab_kernels.ssd.problem import SsdProblem, make_inputs

PLAIN = SsdProblem(batch=2, length=83, heads=4, head_dim=6, state=5, groups=2)
# Beyond a tile of vectors, with a rest of vectors, and of rows.
WIDE = SsdProblem(batch=1, length=71, heads=3, head_dim=100, state=37, has_z=True, skip="channel")

pytestmark = pytest.mark.skipif(backend.unavailable() is not None, reason=str(backend.unavailable()))


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Hold the kernel to one instruction set."""
    monkeypatch.setenv("SCANLAB_ISA", request.param)
    return request.param


@pytest.mark.parametrize("dtype", backend.capabilities.dtypes)
@pytest.mark.parametrize("problem", [PLAIN, WIDE, *PROBES], ids=lambda each: each.key)
def test_every_instruction_set_agrees(isa: str, problem: SsdProblem, dtype: str) -> None:
    for gradients in (False, True):
        asked = problem.replace(dtype=dtype, gradients=gradients)
        verdict = verify(backend.build(asked), reference_outputs(asked, make_inputs(asked)))
        assert verdict.passed, verdict.reason


@pytest.mark.parametrize("dtype", backend.capabilities.dtypes)
def test_every_layout_of_memory_is_read(isa: str, dtype: str) -> None:
    problem = PLAIN.replace(has_z=True, has_initial_state=True, has_seq_idx=True, dtype=dtype)
    (inputs,) = make_inputs(problem)
    expected = backend.build(problem)(inputs)
    for axis in range(4):
        # The given axis becomes the one that is dense in memory.
        dense_along_axis = {
            name: each.movedim(axis, 3).contiguous().movedim(3, axis)
            for name, each in inputs._asdict().items()
            if each is not None and each.dim() == 4
        }
        turned = inputs._replace(**dense_along_axis)
        for found, value in zip(backend.build(problem)(turned), expected, strict=True):
            torch.testing.assert_close(found, value)


def test_threads_change_no_bit() -> None:
    problem = SsdProblem(batch=2, length=150, heads=8, head_dim=20, state=16, groups=2, gradients=True)
    (inputs,) = make_inputs(problem)
    leaves = [each.requires_grad_() for each in inputs if each is not None]
    results = []
    for threads in (1, 2, 3):
        with torch_threads(threads):
            outputs = backend.build(problem, {"task_heads": 2})(inputs)
            results.append((*outputs, *torch.autograd.grad(outputs[0].square().sum(), leaves)))
    for found in results[1:]:
        assert all(map(torch.equal, found, results[0]))


@pytest.mark.parametrize("has_z", [False, True])
@pytest.mark.parametrize("keeps_states", [False, True])
def test_traces_with_the_shapes_that_it_returns(keeps_states: bool, has_z: bool) -> None:
    extension.load()
    (inputs,) = make_inputs(PLAIN.replace(has_initial_state=True, has_z=has_z))
    ops, settings = torch.ops.scanlab_ssd, (True, 0.0, 1.0, 32, 2, 0)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.forward.default, (*inputs, *settings, keeps_states), test_utils=checks)
    if keeps_states:
        arguments = (*ops.forward(*inputs, *settings, True), *inputs, *settings)
        torch.library.opcheck(ops.backward.default, arguments, test_utils=checks)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_no_number_stays_in_its_head_and_goes_forward_only(value: float) -> None:
    problem = PLAIN.replace(batch=1)
    (inputs,) = make_inputs(problem)
    expected = backend.build(problem)(inputs)
    inputs.x[0, 40, 1, 3] = value
    found = backend.build(problem)(inputs)
    touched = ~found.out.isfinite()
    assert touched[0, 40:, 1, 3].all()
    assert touched.sum() == 43
    assert torch.equal(found.out[~touched], expected.out[~touched])
    assert not found.final_state[0, 1, 3].isfinite().any()


def test_an_infinite_projection_reaches_no_earlier_step() -> None:
    (inputs,) = make_inputs(PLAIN)
    expected = backend.build(PLAIN)(inputs)
    inputs.B[0, 50, 0, 2] = float("inf")
    found = backend.build(PLAIN)(inputs)
    assert torch.equal(found.out[0, :50], expected.out[0, :50])
    assert not found.out[0, 50, :2].isfinite().any()
