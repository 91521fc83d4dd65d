"""An op of a third party from the command line: verified, compared, tuned, deployed, reported."""

from __future__ import annotations

from functools import partial

import pytest

from helpers.simulated import tune_simulated
from helpers.third_party import install_moving_average
from scanlab.contract import registry

PROBLEM = ("--op", "moving_average", "--problem", "rows=6,length=500")


@pytest.fixture
def run_with_op(run, monkeypatch, tmp_path_factory):
    """Run `scanlab` where examples/moving_average is installed."""
    install_moving_average(monkeypatch, tmp_path_factory.mktemp("site"))
    registry.clear()
    yield run
    monkeypatch.undo()
    registry.clear()


def test_it_is_listed_verified_and_compared(run_with_op):
    assert {"moving_windows", "moving_pool"} <= {
        each["name"] for each in run_with_op("list", "--json").json["backends"]
    }
    verified = run_with_op("verify", "--op", "moving_average", "--json")
    assert verified.code == 0
    assert {each["state"] for each in verified.json} <= {"ok", "rejected"}
    compared = run_with_op("bench", "moving_pool:rows=64", "moving_windows", *PROBLEM, "--budget", "1s", "--json")
    trials = compared.json[0]["trials"]
    assert {trial["backend"] for trial in trials} == {"moving_pool", "moving_windows"}
    assert all(trial["verdict"]["passed"] and trial["problem"] == PROBLEM[3] for trial in trials)


def test_it_is_tuned_deployed_and_reported(run_with_op, tmp_path, monkeypatch):
    quick = partial(tune_simulated, time_ms=lambda each: 1.0 if each.config.get("rows") == 64 else 5.0)
    monkeypatch.setattr("scanlab.cli.tune_problems.tune_problem", quick)
    monkeypatch.setattr("scanlab.cli.tune_problems.MIN_SWEEP_S", 1e9)
    (found,) = run_with_op("tune", *PROBLEM, "--budget", "30s", "--json").json
    assert found["new"] == found["tried"] == 4
    assert (found["winner"]["op"], found["winner"]["config"]) == ("moving_average", {"rows": 64})
    assert "times as fast as moving_windows" in found["why"]
    report = (tmp_path / "runs" / "report" / "report.md").read_text()
    assert "moving_average: rows 6, length 500" in report
    assert "moving_pool" in report
    best = run_with_op("best", *PROBLEM, "--json").json[0]
    assert best["op"] == "moving_average"
    assert (best["backend"], best["basis"]) == ("moving_pool", "exact")
    assert run_with_op("profile", "show", PROBLEM[3], "--op", "moving_average").code == 0
    assert run_with_op("profile", "list", "--json").json["entries"][0]["op"] == "moving_average"


def test_backends_of_two_ops_are_not_compared(run_with_op):
    refused = run_with_op("bench", "chunked", "moving_pool", *PROBLEM)
    assert refused.code == 2
    assert "implements selective_scan, not moving_average" in refused.err
    assert "no problem of moving_average is named" in run_with_op("best", "--op", "moving_average").err
