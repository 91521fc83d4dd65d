"""Time against length: every point proved and recorded, the fast kept longest, nothing guessed."""

from __future__ import annotations

import time

from scanlab.bench.lengths import sweep
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import Entrant
from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem

TINY = ScanProblem(batch=1, dim=4, length=8, state=3)


def entrant(name: str) -> Entrant:
    backend = registry.get(name)
    return Entrant(backend, backend.space.defaults | {"threads": 1})


def run(tmp_path, seconds: float, lengths=(4, 8, 16)):
    entrants = [entrant("reference"), entrant("two_phase")]
    results = TrialStore(tmp_path)
    trials = sweep(TINY, entrants, entrants[1], results, time.monotonic() + seconds, lengths=lengths)
    return trials, results.load().trials


def test_every_length_is_proved_timed_and_recorded(tmp_path):
    trials, recorded = run(tmp_path, seconds=60.0)
    assert {(trial.backend, trial.problem.length) for trial in trials} == {
        (name, length) for name in ("reference", "two_phase") for length in (4, 8, 16)
    }
    assert all(trial.phase == "lengths" and trial.verdict.passed and trial.measurement for trial in trials)
    assert {trial.id for trial in recorded} == {trial.id for trial in trials}


def test_without_time_left_a_line_ends_and_nothing_is_guessed(tmp_path):
    trials, recorded = run(tmp_path, seconds=0.0)
    assert trials == ()
    assert recorded == ()
    # The first point is always begun; one that takes a thousand times as long is not expected to fit.
    trials, _ = run(tmp_path, seconds=3.0, lengths=(4, 4_000_000))
    assert {trial.problem.length for trial in trials} == {4}
