"""Comparison of backends in one call: the right ones get a time, the wrong ones a reason."""

from __future__ import annotations

import dataclasses

import pytest

from scanlab.contract import registry
from scanlab.contract.problem import ScanOutput, ScanProblem
from scanlab.errors import UnknownBackendError
from scanlab.testing import compare

PROBLEM = ScanProblem(batch=1, dim=4, length=16, state=2)


def test_a_right_backend_gets_a_time_and_a_wrong_one_a_reason():
    two_phase = registry.get("two_phase")

    def make(problem, config):
        scan = two_phase.make(problem, config)

        def doubled(inputs):
            out, last_state = scan(inputs)
            return ScanOutput(2 * out, last_state)

        return doubled

    wrong = dataclasses.replace(two_phase, name="wrong", make=make)
    found = {each.label.split()[0]: each for each in compare([wrong, "two_phase:threads=1"], PROBLEM, seconds=1.0)}
    assert found["wrong"].median_ms is None
    assert found["wrong"].reason.startswith("wrong: ")
    assert found["two_phase"].reason is None or found["two_phase"].reason.startswith("disturbed")


def test_an_unknown_backend_is_named():
    with pytest.raises(UnknownBackendError, match="nobody"):
        compare(["nobody"], PROBLEM)
