"""Time against length: every point verified and recorded, the fast kept longest, nothing guessed."""

from __future__ import annotations

import pytest

from scanlab.bench.clock import MeasuringClock
from scanlab.bench.compare import sweep_lengths
from scanlab.bench.context import Candidate
from scanlab.bench.store import TrialStore
from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem

TINY = ScanProblem(batch=1, dim=4, length=8, state=3)


def candidate(name: str) -> Candidate:
    backend = registry.get(name)
    return Candidate(backend, backend.space.defaults | {"threads": 1})


def run(tmp_path, seconds: float, lengths=(4, 8)):
    candidates = [candidate("reference"), candidate("two_phase")]
    store = TrialStore(tmp_path)
    trials = sweep_lengths(TINY, candidates, store, MeasuringClock(), seconds, lengths=lengths)
    return trials, store.load().trials


@pytest.mark.timing
def test_every_length_is_verified_timed_and_recorded(tmp_path):
    trials, recorded = run(tmp_path, seconds=20.0)
    # Beside other work a point may have too few clean rounds to be drawn; it is recorded all the same.
    assert {(trial.backend, trial.problem.length) for trial in recorded} == {
        (name, length) for name in ("reference", "two_phase") for length in (4, 8)
    }
    assert all(trial.phase == "lengths" and trial.verdict.passed and trial.measurement for trial in recorded)
    assert {trial.id for trial in trials} <= {trial.id for trial in recorded}


def test_without_time_left_a_line_ends_and_nothing_is_guessed(tmp_path):
    trials, recorded = run(tmp_path, seconds=0.0)
    assert trials == ()
    assert recorded == ()
    # The first point is always begun; one that takes a thousand times as long is not expected to fit.
    trials, _ = run(tmp_path, seconds=3.0, lengths=(4, 4_000_000))
    assert {trial.problem.length for trial in trials} == {4}
