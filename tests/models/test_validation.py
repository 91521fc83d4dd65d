"""The gate: right backends pass in every dtype, and one that is fast and slightly wrong is caught by the task."""

from __future__ import annotations

import dataclasses

import pytest

from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem
from scanlab.models.digits import Digits, digits_test_set
from scanlab.models.validation import TASK_BUDGETS, profiled_selections, validate_task
from scanlab.runtime.profile import Profile, ProfileEntry

RIGHT = "chunked:threads=1"


def replaced(monkeypatch, spoil) -> None:
    """The chunked backend, its scans spoilt."""
    honest = registry.get("chunked")

    def make(problem, config):
        scan = honest.make(problem, config)
        return lambda *inputs: spoil(scan(*inputs))

    backend = dataclasses.replace(honest, make=make)
    monkeypatch.setattr(registry, "get", lambda name: backend if name == "chunked" else honest_get(name))


honest_get = registry.get


@pytest.fixture
def few_digits(monkeypatch):
    """The first 72 digits alone."""
    few = Digits(*(part[:72] for part in digits_test_set()))
    monkeypatch.setattr("scanlab.models.validation.digits_test_set", lambda: few)


def test_a_right_backend_passes_in_every_dtype():
    results = validate_task([RIGHT])
    assert [result.dtype for result in results] == list(TASK_BUDGETS)
    for result in results:
        assert result.passed, result.reason
        assert result.accuracy >= 0.97
        assert result.top1_agreement >= 0.99
    errors = {result.dtype: result.logit_error for result in results}
    assert errors["float64"] < errors["float32"] < errors["float16"] < errors["bfloat16"]


@pytest.mark.parametrize(("factor", "complaint"), [(1.0005, "a logit is off by"), (float("nan"), "a logit is off by")])
@pytest.mark.usefixtures("few_digits")
def test_a_slightly_wrong_backend_fails_with_the_reason(monkeypatch, factor, complaint):
    replaced(monkeypatch, lambda result: result._replace(out=result.out * factor))
    (result,) = validate_task([RIGHT], ["float32"])
    assert not result.passed
    assert complaint in result.reason


@pytest.mark.usefixtures("few_digits")
def test_changed_answers_fail(monkeypatch):
    replaced(monkeypatch, lambda result: result._replace(out=-result.out))
    (result,) = validate_task([RIGHT], ["bfloat16"])
    assert "digits are read differently" in result.reason
    assert result.accuracy < 0.9


@pytest.mark.usefixtures("few_digits")
def test_a_crash_fails_and_what_cannot_run_does_not(monkeypatch):
    def crash(result):
        raise RuntimeError("out of luck")

    replaced(monkeypatch, crash)
    (crashed,) = validate_task([RIGHT], ["float32"])
    assert not crashed.passed
    assert "out of luck" in crashed.reason
    if registry.get("triton").unavailable() is not None:
        (absent,) = validate_task(["triton"], ["float32"])
        assert absent.passed
        assert absent.accuracy is None


def test_what_a_profile_deploys_is_validated_once():
    problem = ScanProblem(batch=1, dim=8, length=8)
    config = {"chunk": 32, "threads": 1}
    entries = tuple(ProfileEntry(problem.replace(dim=dim), "chunked", "", config) for dim in (8, 16))
    assert profiled_selections(Profile("", "", entries)) == ["chunked:chunk=32,threads=1"]
    assert profiled_selections(None) == []
