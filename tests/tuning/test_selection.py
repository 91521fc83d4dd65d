"""Selection: which candidates are compared, what a hold-out confirms and what it demotes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.records import block, measurement, trial
from scanlab.bench.ranking import Comparison, Place, RankedCandidate
from scanlab.bench.stats import Interval
from scanlab.contract.verify import Verdict
from scanlab.tuning.selection import confirmed, exact_enough, fresh_processes

MS = 1_000_000


def outcome(*named, phase="comparison"):
    """A comparison of (backend, behind, distinguishable), or with a rank too, which else is 5; the first wins."""
    made = [
        RankedCandidate(
            trial(backend=backend, phase=phase, measurement=measurement(*[block([MS], [2 * MS])] * 6)),
            rank[0] if rank else 5,
            0,
            Place(behind, Interval(behind, behind), distinguishable),
        )
        for backend, behind, distinguishable, *rank in named
    ]
    return Comparison(tuple(made), made[0], (), 0.01, 9, 9, 2, ())


def names(compared):
    return [each.trial.backend for each in compared.ranking]


def test_a_winner_that_leads_the_hold_out_too_is_confirmed():
    held = outcome(("quick", 0.0, False), ("slow", 1.0, True), phase="holdout")
    assert confirmed(held, outcome(("quick", 0.0, False), ("slow", 1.2, True))) == held


def test_a_winner_that_ties_in_the_hold_out_stays_the_winner():
    held = outcome(("other", 0.0, False), ("chosen", 0.005, False), ("slow", 1.0, True), phase="holdout")
    found = confirmed(held, outcome(("chosen", 0.0, False), ("other", 0.004, False)))
    assert names(found) == ["chosen", "other", "slow"]
    assert "tied with other" in found.why
    assert "chosen as the winner of the comparison before" in found.why


@pytest.mark.parametrize(
    ("tie", "advantage"),
    [
        (("other", 0.01, False, 8), "simplest"),
        (("other", 0.01, False, 5), "most exact, then smallest in memory, of its rank"),
    ],
)
def test_the_sentence_says_what_a_tie_was_decided_by(tie, advantage):
    assert outcome(("chosen", 0.0, False), tie).why.endswith(f"and chosen as the {advantage}.")


def test_what_is_far_behind_is_not_called_a_tie_though_it_was_not_distinguished():
    why = outcome(("chosen", 0.0, False), ("simple", 0.3, False, 1)).why
    assert "tied" not in why
    assert why.endswith("not distinguishable from simple chunk=32 threads=1 by 9 clean rounds.")


def test_a_winner_that_is_slower_in_the_hold_out_is_demoted_aloud():
    held = outcome(("other", 0.0, False), ("chosen", 0.4, True), phase="holdout")
    found = confirmed(held, outcome(("chosen", 0.0, False), ("other", 0.1, True)))
    assert names(found) == ["other", "chosen"]
    (notice,) = found.notices
    assert "chosen chunk=32 threads=1 won the comparison and is not shown to be faster there" in notice
    assert "names other" in notice


def test_a_winner_that_fails_in_the_hold_out_is_demoted_aloud():
    found = confirmed(outcome(("other", 0.0, False), phase="holdout"), outcome(("chosen", 0.0, False)))
    assert names(found) == ["other"]
    assert "failed there" in found.notices[0]


def test_of_those_that_are_exact_enough_the_fastest_wins_though_an_inexact_one_leads():
    compared = outcome(("inexact", 0.0, False), ("exact", 0.5, True), ("slow", 1.0, True))
    errors, times = (1e-3, 1e-7, 1e-7), (MS, 2 * MS, 3 * MS)
    ranking = tuple(
        replace(
            each,
            trial=replace(
                each.trial,
                verdict=Verdict(passed=True, errors={"out": error}, tolerances={"out": 1e-2}),
                measurement=measurement(*[replace(block([time], [2 * MS]), round=number) for number in range(8)]),
            ),
        )
        for each, error, time in zip(compared.ranking, errors, times, strict=True)
    )
    found = exact_enough(replace(compared, ranking=ranking, winner=ranking[0]), 1e-6)
    assert names(found) == ["exact", "slow"]
    assert found.winner is found.ranking[0]
    assert "inexact chunk=32 threads=1: not exact enough" in found.notices[-1]


@pytest.mark.parametrize(
    ("builds_s", "available_s", "processes"),
    [([], 3.0, 0), ([], 8.1, 1), ([0.1, 0.2], 40.0, 4), ([], 1e6, 5), ([12.0], 30.0, 0), ([12.0], 70.0, 2)],
)
def test_fresh_processes_spend_at_most_half_their_time_on_starting(builds_s, available_s, processes):
    assert fresh_processes(4.0, builds_s, available_s) == processes
