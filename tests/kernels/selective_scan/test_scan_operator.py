"""The scan as torch's scan operator, beside the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scanlab.contract import registry
from scanlab.contract.problem import DIRECTIONS, Direction, ScanProblem, make_inputs
from scanlab.errors import UnavailableError
from scanlab_kernels.selective_scan import scan_operator

PLAIN = ScanProblem(batch=2, dim=6, length=5, state=4)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without softplus": {"delta_softplus": False},
    "without anything": {"has_D": False, "has_z": False, "has_delta_bias": False},
    "with groups": {"groups": 3, "has_initial_state": True},
    "with a constant B": {"constant_B": True},
    "with a constant C": {"constant_C": True, "groups": 2},
    "in float64": {"dtype": "float64"},
    "in bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("options", OPTIONS)
def test_the_operator_is_the_scan(direction: Direction, options: str) -> None:
    problem = PLAIN.replace(direction=direction, **OPTIONS[options])
    inputs = make_inputs(problem)
    found = scan_operator.scan(*inputs, delta_softplus=problem.delta_softplus, direction=direction)
    expected = registry.get("reference").build(problem)(*inputs)
    tolerance = 1e-2 if problem.dtype == "bfloat16" else 1e-5
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_a_complex_scan_is_refused() -> None:
    with pytest.raises(UnavailableError, match="ONNX has no complex numbers"):
        scan_operator.scan(*make_inputs(PLAIN.replace(complex_A=True)))
