"""`scanlab verify --model` as a gate: its exit code, its reasons, and that it judges what the profile deploys."""

from __future__ import annotations

import pytest

from scanlab.contract.problem import ScanProblem
from scanlab.models import validation as validate
from scanlab.models.digits import Digits, digits_test_set
from scanlab.runtime.profile import Profile, ProfileEntry, profile_path

CHUNKED = "chunked:threads=1"
ONLY_DIGITS = ("verify", "--model", "digits", "--dtypes", "float32")


@pytest.fixture(autouse=True)
def few_digits(monkeypatch):
    """The first 72 digits alone."""
    few = Digits(*(part[:72] for part in digits_test_set()))
    monkeypatch.setattr(validate, "digits_test_set", lambda: few)


def test_a_broken_budget_fails_the_command_with_the_reason(run, monkeypatch):
    assert run(*ONLY_DIGITS, CHUNKED).code == 0
    monkeypatch.setitem(validate.TASK_BUDGETS, "float32", validate.Budget(0.0, 0.0))
    outcome = run(*ONLY_DIGITS, CHUNKED)
    assert outcome.code == 1
    assert f"{CHUNKED}: in float32 a logit is off by" in outcome.out


def test_what_the_profile_deploys_is_judged(run, monkeypatch):
    entry = ProfileEntry(ScanProblem(batch=1, dim=8, length=8), "chunked", "", {"chunk": 16, "threads": 1})
    Profile.empty().with_entry(entry).save(profile_path())
    monkeypatch.setattr("scanlab.contract.registry.load_all", lambda op: ((), {}))
    (judged,) = run(*ONLY_DIGITS, "--json").json["digits"]
    assert judged["selection"] == "chunked:chunk=16,threads=1"
    assert judged["config"] == {"chunk": 16, "threads": 1}
    assert judged["passed"]


def test_the_trained_model_takes_no_photograph_and_known_dtypes_only(run):
    assert "leave the image out" in run("verify", "--model", "digits", "--image", "photo.jpg").err
    assert "--dtypes int8: must be of float64, float32" in run("verify", "--model", "digits", "--dtypes", "int8").err
