"""Comparison: the faster wins with an interval, ties go to the untuned choice, and disturbed rounds say nothing."""

from __future__ import annotations

import math

import pytest

from helpers.fakes import sleepy
from helpers.simulated import simulated
from scanlab.bench.context import Candidate
from scanlab.bench.store import TrialStore
from scanlab.contract import registry
from scanlab.contract.evidence import EvidenceRank


def candidate(name, delay_ms=0.0, rank=5):
    return Candidate(sleepy(name, (0.0, delay_ms) if delay_ms else (0.0,), rank), {"delay_ms": delay_ms})


def labels(compared):
    return [each.trial.backend for each in compared.ranking]


def test_the_faster_wins_and_the_sentence_says_by_how_much(tmp_path):
    comparer, _ = simulated(tmp_path)
    compared = comparer.compare([candidate("slow", 4.0), candidate("fast")], deadline=10.0)
    assert labels(compared) == ["fast", "slow"]
    assert compared.winner is compared.ranking[0]
    assert compared.ranking[1].place.distinguishable
    assert math.exp(compared.ranking[1].place.behind) == pytest.approx(5.0, rel=0.05)
    assert compared.why.startswith("fast delay_ms=0.0: 1.0")
    assert "times as fast as reference threads=1 (95 %:" in compared.why
    assert "the next, slow delay_ms=4.0, takes" in compared.why


def test_every_candidate_is_recorded_with_samples_that_share_the_baseline(tmp_path):
    comparer, _ = simulated(tmp_path)
    compared = comparer.compare([candidate("one"), candidate("two", 2.0)], deadline=5.0)
    recorded = TrialStore(tmp_path).load().trials
    assert {trial.id for trial in recorded} == {trial.id for trial in compared.trials}
    assert {(trial.phase, trial.evidence) for trial in recorded} == {("comparison", EvidenceRank.COMPARISON)}
    one, two = (each.trial.measurement for each in compared.ranking)
    assert one.baseline == two.baseline == "one"
    assert one.reference == "reference threads=1"
    assert one.speedup == pytest.approx(20.0, rel=0.05)
    shared = {block.round: block.baseline_ns for block in one.blocks}
    assert all(shared[block.round] == block.baseline_ns for block in two.blocks)


def test_equals_tie_and_the_lower_rank_wins(tmp_path):
    comparer, _ = simulated(tmp_path)
    compared = comparer.compare([candidate("high", rank=9), candidate("low", rank=1)], deadline=10.0)
    assert compared.winner.trial.backend == "low"
    assert [each.trial.backend for each in compared.ties] == ["high"]
    assert "tied with high delay_ms=0.0, and chosen as the simplest" in compared.why
    assert 0 < compared.noise_floor < 0.05


def test_what_serves_untuned_wins_whatever_it_ties_with(tmp_path):
    comparer, _ = simulated(tmp_path)
    untuned, simpler = candidate("untuned", rank=9), candidate("simpler", rank=1)
    compared = comparer.compare([simpler, untuned], deadline=10.0, untuned=untuned)
    assert compared.winner.trial.backend == "untuned"
    assert compared.gain is None
    assert "it is the untuned choice, and nothing is shown to be faster" in compared.why


def test_a_gain_over_what_serves_untuned_is_said_with_its_interval(tmp_path):
    comparer, _ = simulated(tmp_path, noise=0.002)
    untuned, faster = candidate("untuned", 0.2), candidate("faster")
    compared = comparer.compare([untuned, faster], deadline=10.0, untuned=untuned)
    assert compared.winner.trial.backend == "faster"
    assert compared.gain.value == pytest.approx(0.2, abs=0.02)
    assert compared.gain.interval.low < 0.2 < compared.gain.interval.high + 0.01
    assert "gain over the untuned choice (untuned delay_ms=0.2): 20 % (" in compared.why


def test_failures_are_dropped_with_their_reasons(tmp_path):
    comparer, _ = simulated(tmp_path, failure=lambda each: "boom" if each.backend.name == "bad" else None)
    compared = comparer.compare([candidate("bad"), candidate("good")], deadline=5.0)
    assert labels(compared) == ["good"]
    assert [(trial.state, trial.reason) for trial in compared.dropped] == [("crashed", "boom")]
    assert "nothing else ran" in compared.why


def test_one_that_fails_in_the_middle_does_not_end_the_comparison(tmp_path):
    comparer, time = simulated(
        tmp_path, failure=lambda each: "boom" if each.backend.name == "late" and time.seconds > 0.5 else None
    )
    compared = comparer.compare([candidate("late", 1.0), candidate("good")], deadline=5.0)
    assert [trial.backend for trial in compared.dropped] == ["late"]
    assert compared.winner.trial.backend == "good"


def test_nobody_wins_where_nothing_runs(tmp_path):
    comparer, _ = simulated(tmp_path, failure=lambda each: "boom")
    compared = comparer.compare([candidate("bad")], deadline=5.0)
    assert compared.winner is None
    assert compared.why == "No winner: no candidate could be timed."


def test_without_time_every_candidate_is_timed_once_and_nobody_wins(tmp_path):
    comparer, _ = simulated(tmp_path)
    compared = comparer.compare([candidate("one"), candidate("two", 30.0)], deadline=0.0)
    assert compared.rounds == 1
    assert compared.winner is None
    assert compared.noise_floor == math.inf
    assert compared.why == "No winner: 1 clean rounds of 1 are too few to tell."
    assert {trial.evidence for trial in compared.trials} == {EvidenceRank.SEARCH}


def test_on_a_machine_that_stays_busy_nobody_wins_and_every_row_says_why(tmp_path):
    comparer, _ = simulated(tmp_path, disturbance=lambda second: "steal", wait_s=1.0)
    compared = comparer.compare([candidate("one"), candidate("two", 3.0)], deadline=5.0)
    assert compared.winner is None
    assert compared.clean_rounds == 0
    assert {trial.state for trial in compared.dropped} == {"disturbed"}
    assert "disturbed (steal) and do not count" in compared.notices[0]


def test_it_waits_for_the_machine_to_calm_down_and_waiting_is_no_measuring(tmp_path):
    comparer, time = simulated(tmp_path, disturbance=lambda second: "steal" if second < 4.0 else None)
    compared = comparer.compare([candidate("one"), candidate("two", 3.0)], deadline=2.0)
    assert compared.winner.trial.backend == "one"
    assert comparer.clock.now() < 3.0
    assert time.seconds > 4.0
    assert compared.rounds - compared.clean_rounds <= 3


def test_slow_candidates_take_part_in_fewer_rounds_but_in_enough_to_be_told(tmp_path):
    comparer, _ = simulated(tmp_path)
    compared = comparer.compare([candidate("fast"), candidate("usual", 1.0), candidate("slow", 99.0)], deadline=30.0)
    blocks = {each.trial.backend: len(each.trial.measurement.blocks) for each in compared.ranking}
    assert 3 <= blocks["slow"] < blocks["fast"] == compared.rounds
    assert compared.ranking[-1].place.distinguishable


def test_fresh_processes_are_told_apart_and_may_all_count(tmp_path):
    comparer, _ = simulated(tmp_path)
    compared = comparer.compare([candidate("one"), candidate("two", 0.03)], deadline=20.0, processes=3)
    processes = {block.process for each in compared.ranking for block in each.trial.measurement.blocks}
    assert len(processes) >= 2


@pytest.mark.parametrize(("build_s", "expected"), [(0.1, 4), (4.0, 2), (8.0, 1)])
def test_processes_that_take_long_to_start_are_fewer_and_leave_time_for_rounds(tmp_path, build_s, expected):
    comparer, time = simulated(tmp_path, noise=0.5, build_s=lambda each: build_s)
    compared = comparer.compare([candidate("one"), candidate("two", 0.01)], deadline=50.0, processes=4)
    assert compared.processes == expected
    assert compared.clean_rounds >= 8
    assert time() < 55.0


def test_a_given_baseline_that_fails_leaves_no_winner(tmp_path):
    comparer, _ = simulated(tmp_path, failure=lambda each: "boom" if each.backend.name == "bad" else None)
    compared = comparer.compare([candidate("good")], deadline=5.0, baseline=candidate("bad"))
    assert compared.winner is None
    assert "the baseline bad delay_ms=0.0 crashed: boom" in compared.notices


def test_the_reference_may_be_a_candidate_too(tmp_path):
    comparer, _ = simulated(tmp_path)
    reference = Candidate(registry.get("reference"), {"threads": 1})
    compared = comparer.compare([reference, candidate("fast")], deadline=10.0)
    rows = {each.trial.backend: each.trial.measurement for each in compared.ranking}
    assert rows["reference"].speedup == pytest.approx(1.0, rel=0.05)
    assert rows["fast"].speedup == pytest.approx(20.0, rel=0.05)
