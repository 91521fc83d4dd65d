"""The finals: who races, what a hold-out run confirms and what it demotes."""

from __future__ import annotations

import os

import pytest

from helpers.records import block, measurement, trial
from scanlab.bench.ranking import Race, Standing
from scanlab.bench.stats import Interval
from scanlab.contract.cpu import usable_threads
from scanlab.contract.verify import Verdict
from scanlab.tuning.selection import confirmed, fresh_processes, pareto

MS = 1_000_000


def outcome(*standings, phase="race"):
    """A race whose standings are (backend, behind, tied), or with a rank too, which else is 5."""
    made = [
        Standing(
            trial(backend=backend, phase=phase, measurement=measurement(block([MS], [2 * MS]))),
            *rank or (5,),
            behind,
            Interval(behind, behind),
            tied,
        )
        for backend, behind, tied, *rank in standings
    ]
    return Race(tuple(made), (), 0.01, 9, 2, ())


def names(race):
    return [standing.trial.backend for standing in race.standings]


def test_a_winner_that_leads_the_hold_out_too_is_confirmed():
    held = outcome(("quick", 0.0, True), ("slow", 1.0, False), phase="holdout")
    assert confirmed(held, outcome(("quick", 0.0, True), ("slow", 1.2, False))) == held


def test_a_winner_that_ties_in_the_hold_out_stays_the_winner():
    held = outcome(("other", 0.0, True), ("chosen", 0.005, True), ("slow", 1.0, False), phase="holdout")
    found = confirmed(held, outcome(("chosen", 0.0, True), ("other", 0.004, True)))
    assert names(found) == ["chosen", "other", "slow"]
    assert found.notices == ()
    assert "tied with other" in found.why
    assert found.why.endswith("chosen as the winner of the race before.")


@pytest.mark.parametrize(
    ("tie", "advantage"),
    [
        (("other", 0.01, True, 8), "simplest"),
        (("other", -0.02, True, 8), "simplest"),
        (("other", 0.01, True, 5), "most exact, then smallest in memory, of its rank"),
    ],
)
def test_the_sentence_says_what_a_tie_was_decided_by(tie, advantage):
    assert outcome(("chosen", 0.0, True), tie).why.endswith(f"and chosen as the {advantage}.")


def test_what_is_far_behind_is_not_called_a_tie_though_it_was_not_told_apart():
    found = outcome(("chosen", 0.01, True), ("fastest", 0.0, True, 8), ("simple", 0.3, True, 1))
    assert "tied with fastest chunk=32 threads=1, and chosen as the simplest; not told apart from simple" in found.why
    alone = outcome(("chosen", 0.0, True), ("simple", 0.3, True, 1)).why
    assert "tied" not in alone
    assert alone.endswith("not told apart from simple chunk=32 threads=1, by the rounds there were (9).")


def test_a_winner_that_is_slower_in_the_hold_out_is_demoted_aloud():
    held = outcome(("other", 0.0, True), ("chosen", 0.4, False), phase="holdout")
    found = confirmed(held, outcome(("chosen", 0.0, True), ("other", 0.1, False)))
    assert names(found) == ["other", "chosen"]
    (notice,) = found.notices
    assert "chosen chunk=32 threads=1 won the race and is slower there" in notice
    assert "names other" in notice


def test_a_winner_that_fails_in_the_hold_out_is_demoted_aloud():
    found = confirmed(outcome(("other", 0.0, True), phase="holdout"), outcome(("chosen", 0.0, True)))
    assert names(found) == ["other"]
    assert "failed there" in found.notices[0]


@pytest.mark.parametrize(
    ("builds_s", "available_s", "processes"),
    [([], 3.0, 0), ([], 8.1, 1), ([0.1, 0.2], 40.0, 4), ([], 1e6, 5), ([12.0], 30.0, 0), ([12.0], 70.0, 2)],
)
def test_fresh_processes_spend_at_most_half_their_time_on_starting(monkeypatch, builds_s, available_s, processes):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert fresh_processes(builds_s, available_s) == processes


def test_the_pareto_set_holds_what_nothing_beats_in_time_and_in_error():
    def timed(milliseconds, error, **changes):
        verdict = Verdict(passed=True, errors={"out": error}, tolerances={"out": 1.0})
        return trial(verdict=verdict, measurement=measurement(block([int(milliseconds * MS)], [MS])), **changes)

    fast, middle, exact = timed(1, 1e-4), timed(2, 1e-5), timed(9, 1e-7)
    beaten, pruned = timed(3, 1e-4), timed(0.5, 1e-9, state="pruned", reason="slow")
    assert pareto([exact, beaten, fast, pruned, middle]) == (fast, middle, exact)
    assert pareto([]) == ()


def test_a_busy_machine_starts_fewer_processes(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0 * usable_threads(), 0.0, 0.0))
    assert fresh_processes([], 50.0) == 2
