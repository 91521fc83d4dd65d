"""The gate: right scans pass it, and every way of being wrong that we know of fails it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from scanlab.contract import registry
from scanlab.contract.backend import ScanFn
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem, make_inputs
from scanlab.contract.verify import Verdict, reference_outputs, relative_error, verify

PROBLEM = ScanProblem(batch=2, dim=6, length=13, state=5, gradients=True)


def right(problem: ScanProblem) -> ScanFn:
    return registry.get("reference").build(problem)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_the_reference_passes_in_every_dtype_and_direction(dtype, direction):
    problem = PROBLEM.replace(dtype=dtype, direction=direction, has_initial_state=True)
    verdict = verify(right(problem), reference_outputs(problem, make_inputs(problem)))
    assert verdict.passed, verdict.reason
    both = direction == "bidirectional"
    assert {"out", "last_state", "grad_A", "grad_z", "grad_initial_state"} <= verdict.errors.keys()
    assert ("grad_u_reverse" in verdict.errors) == both
    if dtype != "float64":
        assert 0 < verdict.worst < max(verdict.tolerances.values())


def scaled(inputs: ScanInputs) -> ScanOutput:
    out, last = right(PROBLEM)(inputs)
    return ScanOutput(out * 1.0001, last)


def gradient_lost(inputs: ScanInputs) -> ScanOutput:
    return right(PROBLEM)(inputs.with_tensors(B=inputs.B.detach()))


def wrong_state(inputs: ScanInputs) -> ScanOutput:
    out, last = right(PROBLEM)(inputs)
    return ScanOutput(out, last.flip(-1))


def wrong_dtype(inputs: ScanInputs) -> ScanOutput:
    out, last = right(PROBLEM)(inputs)
    return ScanOutput(out.double(), last)


def wrong_shape(inputs: ScanInputs) -> ScanOutput:
    out, last = right(PROBLEM)(inputs)
    return ScanOutput(out.mT, last)


def one_nan(inputs: ScanInputs) -> ScanOutput:
    out, last = right(PROBLEM)(inputs)
    holed = torch.where(torch.arange(out.shape[-1]) == 3, math.nan, out)
    return ScanOutput(holed, last)


@pytest.mark.parametrize(
    ("scan", "complaint"),
    [
        (scaled, "out is off by"),
        (gradient_lost, "grad_B is off by"),
        (wrong_state, "last_state is off by"),
        (wrong_dtype, "out is torch.float64"),
        (wrong_shape, r"out is torch.float32 \(2, 13, 6\)"),
        (one_nan, "^out is not finite where it should be, or"),
    ],
)
def test_a_wrong_scan_fails_with_its_reason(scan, complaint):
    verdict = verify(scan, reference_outputs(PROBLEM, make_inputs(PROBLEM)))
    assert not verdict.passed
    with pytest.raises(AssertionError, match=complaint):
        assert verdict.passed, verdict.reason


def test_an_output_that_was_never_written_fails():
    problem = PROBLEM.replace(gradients=False, dim=64, length=64)

    def lazy(inputs: ScanInputs) -> ScanOutput:
        return ScanOutput(torch.empty_like(inputs.u), right(problem)(inputs).last_state)

    assert not verify(lazy, reference_outputs(problem, make_inputs(problem))).passed


def test_an_output_left_where_right_ones_lay_before_fails():
    problem = PROBLEM.replace(gradients=False, dim=64, length=64)
    (inputs,) = make_inputs(problem)
    expected = reference_outputs(problem, (inputs,))
    last = right(problem)(inputs).last_state.clone()

    def lazy(inputs: ScanInputs) -> ScanOutput:
        return ScanOutput(torch.empty_like(inputs.u), last)

    kept = [right(problem)(inputs).out.clone() for _ in range(16)]
    del kept
    assert not verify(lazy, expected).passed


def test_a_scan_that_changes_its_inputs_fails():
    problem = PROBLEM.replace(gradients=False)

    def scribbling(inputs: ScanInputs) -> ScanOutput:
        result = right(problem)(inputs)
        inputs.delta.add_(1.0)
        return result

    verdict = verify(scribbling, reference_outputs(problem, make_inputs(problem)))
    assert verdict.reason == "the implementation changed its input delta"


def test_a_scan_that_is_wrong_in_some_calls_fails_where_calls_are_repeated():
    problem, calls = PROBLEM.replace(gradients=False), itertools.count(1)

    def racing(inputs: ScanInputs) -> ScanOutput:
        out, last = right(problem)(inputs)
        return ScanOutput(out * 1.1 if next(calls) % 4 == 0 else out, last)

    expected = reference_outputs(problem, make_inputs(problem))
    assert verify(racing, expected).passed
    verdict = verify(racing, expected, repeats_s=60.0)
    assert not verdict.passed
    assert verdict.errors["out"] == pytest.approx(0.1, rel=0.01)
    assert (verdict.reason or "").endswith("in call 3 with the same inputs")


def test_relative_error_knows_infinities_and_nothing():
    inf = math.inf
    assert relative_error(torch.tensor([1.0, inf]), torch.tensor([1.0, inf])) == 0.0
    assert relative_error(torch.tensor([1.0, -inf]), torch.tensor([1.0, inf])) == inf
    assert relative_error(torch.tensor([1.0, math.nan]), torch.tensor([1.0, inf])) == inf
    assert relative_error(torch.tensor([0.5]), torch.tensor([0.0])) == 0.5
    assert relative_error(torch.tensor([math.nan]), torch.tensor([math.nan])) == 0.0


def test_a_verdict_survives_json():
    verdict = Verdict(False, {"out": 1e-3}, {"out": 2e-5}, "out is off")
    assert Verdict.from_json(verdict.to_json()) == verdict
