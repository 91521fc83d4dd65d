"""The race: the faster wins with an interval, what cannot be told apart ties, and a tie goes to the simpler."""

from __future__ import annotations

import math
import time

import pytest

from helpers.fakes import TINY, crashing, fake, sleepy, wrong
from scanlab.bench.compare import race
from scanlab.bench.prove import Failure, Proven, Setting, prove
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import Entrant
from scanlab.contract import registry
from scanlab.contract.problem import make_inputs
from scanlab.errors import RejectedError

REFERENCE = Entrant(registry.get("reference"), {"threads": 1})


@pytest.fixture(scope="module")
def setting():
    return Setting.of(TINY, make_inputs(TINY), "made", seed=0)


def run(entrants, setting, tmp_path, seconds=2.0, **options):
    return race(entrants, REFERENCE, setting, TrialStore(tmp_path), time.monotonic() + seconds, **options)


def test_the_faster_wins_and_the_sentence_says_by_how_much(setting, tmp_path):
    slow, fast = Entrant(sleepy("slow", (25.0,)), {}), Entrant(sleepy("fast", (0.0,)), {})
    outcome = run([slow, fast], setting, tmp_path)
    assert [standing.trial.backend for standing in outcome.standings] == ["fast", "slow"]
    assert outcome.winner.behind == 0.0
    assert outcome.standings[1].behind > 0
    assert outcome.why.startswith("fast delay_ms=0.0: ")
    assert "slow delay_ms=25.0" in outcome.why


def test_every_entrant_is_recorded_with_samples_that_the_anchor_shared(setting, tmp_path):
    entrants = [Entrant(sleepy("one"), {"delay_ms": 1.0}), Entrant(sleepy("two"), {"delay_ms": 3.0})]
    outcome = run(entrants, setting, tmp_path)
    recorded = TrialStore(tmp_path).load().trials
    assert {trial.id for trial in recorded} == {trial.id for trial in outcome.trials}
    assert {trial.phase for trial in recorded} == {"race"}
    one, two = (standing.trial.measurement for standing in outcome.standings)
    assert one.anchor == "reference"
    shared = {each.round: each.anchor_ns for each in one.blocks}
    assert all(shared[each.round] == each.anchor_ns for each in two.blocks if each.round in shared)


def test_two_of_a_kind_tie_and_the_lower_rung_wins(setting, tmp_path):
    high, low = sleepy("high", (2.0,), rank=9), sleepy("low", (2.0,), rank=1)
    outcome = run([Entrant(high, {}), Entrant(low, {})], setting, tmp_path, seconds=4.0)
    assert outcome.winner.trial.backend == "low"
    assert [standing.trial.backend for standing in outcome.ties] == ["high"]
    assert "tied with high" in outcome.why


def test_what_is_wrong_or_crashes_is_dropped_with_its_reason(setting, tmp_path):
    entrants = [Entrant(wrong(), {"scale": 2.0}), Entrant(crashing(), {}), Entrant(sleepy(), {})]
    outcome = run(entrants, setting, tmp_path)
    assert [standing.trial.backend for standing in outcome.standings] == ["sleepy"]
    assert {trial.backend: trial.state for trial in outcome.dropped} == {"wrong": "wrong", "crashing": "crashed"}
    assert "nothing else ran" in outcome.why


def test_one_that_crashes_in_mid_race_does_not_end_it(setting, tmp_path):
    # Late enough to be proved and to take part for a while.
    late = crashing(at_call=60)
    assert isinstance(prove(late, {}, setting), Proven)
    outcome = run([Entrant(late, {}), Entrant(sleepy(), {"delay_ms": 1.0})], setting, tmp_path)
    assert [trial.backend for trial in outcome.dropped] == ["crashing"]
    assert "the kernel fell over" in outcome.dropped[0].reason
    assert outcome.winner.trial.backend == "sleepy"


def test_nobody_wins_where_nobody_runs(setting, tmp_path):
    outcome = run([Entrant(crashing(), {})], setting, tmp_path)
    assert outcome.winner is None
    assert outcome.why == "No winner: no entrant could run."


def test_an_anchor_that_cannot_run_is_refused(setting, tmp_path):
    with pytest.raises(RejectedError, match="the kernel fell over"):
        race([REFERENCE], Entrant(crashing(), {}), setting, TrialStore(tmp_path), time.monotonic() + 1)


def test_every_entrant_runs_at_least_once_even_without_time(setting, tmp_path):
    outcome = run([Entrant(sleepy(), {})], setting, tmp_path, seconds=0.0)
    assert outcome.rounds == 1
    assert any("rounds that fitted into the time for the race: 1, fewer than 8" in each for each in outcome.notices)
    assert "times as fast as reference threads=1 (95 %: unknown)" in outcome.why
    assert outcome.noise_floor == math.inf


def test_a_failure_carries_the_reason(setting):
    failure = prove(fake("odd", lambda scan, config: 1 / 0), {}, setting)
    assert isinstance(failure, Failure)
    assert failure.state == "crashed"
    assert "ZeroDivisionError" in failure.reason
