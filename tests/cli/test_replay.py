"""`scanlab replay`: a table of ways to choose, from records alone."""

from __future__ import annotations

import pytest

from scanlab.bench.store import TrialStore
from scanlab.bench.worker import Entrant
from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.tuning.budget import Budget
from scanlab.tuning.tune import tune

PROBLEM = ScanProblem(batch=1, dim=6, length=20, state=4)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder with a short search of one backend."""
    monkeypatch.setattr("scanlab.tuning.tune.RACE_S", 0.1)
    anchor = Entrant(registry.get("reference"), {"threads": 1})
    budget = Budget(trials=5)
    tune(PROBLEM, make_inputs(PROBLEM), [registry.get("chunked")], budget, TrialStore(tmp_path / "runs"), anchor=anchor)
    return tmp_path / "runs"


def test_it_compares_ways_of_choosing(run, runs):
    rows = run("replay", str(runs), "--repeats", "3", "--json").json
    assert {row["policy"]["trials"] for row in rows} == {2, 5}
    assert {row["policy"]["sampler"] for row in rows} == {"tpe", "random"}
    assert all(0 <= row["wrong"] <= 1 and row["regret"] >= 0 and row["blocks"] > 0 for row in rows)
    shown = run("replay", str(runs), "--repeats", "3", "--backend", "chunked").out
    assert "chunked: 5 configurations" in shown
    assert "8 x 20" in shown


def test_without_records_it_says_what_to_do(run):
    outcome = run("replay")
    assert outcome.code == 2
    assert "no trials are recorded in runs: name a folder that `scanlab tune` wrote to" in outcome.err
