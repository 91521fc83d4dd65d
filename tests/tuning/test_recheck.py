"""Recheck: a choice holds while nothing has changed, and is demoted with the reason when something has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.fakes import TINY
from helpers.records import block, measurement, trial
from helpers.simulated import noisy
from scanlab.bench.clock import MeasuringClock
from scanlab.bench.context import Candidate
from scanlab.bench.simulated_worker import SimulatedTime, SimulatedWorker
from scanlab.bench.store import TrialStore
from scanlab.contract import registry
from scanlab.tuning.recheck import recheck

MS = 1_000_000
TWO_PHASE = registry.get("two_phase")


def evidence(speedup=20.0, **changes):
    """A trial of two_phase that was so many times as fast as the reference."""
    fields = {
        "problem": TINY,
        "backend": "two_phase",
        "source_hash": TWO_PHASE.source_hash,
        "config": {"threads": 1},
        "measurement": measurement(*(block([MS], [int(speedup * MS)]) for _ in range(6))),
    }
    return trial(**(fields | changes))


def run(chosen, folder, seconds=20.0, time_ms=lambda candidate: 1.0, rivals=(), **options):
    time = SimulatedTime()
    worker = SimulatedWorker(time, noisy(time_ms), **options)
    return recheck(chosen, TrialStore(folder), seconds, rivals, clock=MeasuringClock(time), open_worker=worker.open)


def test_a_choice_that_repeats_its_evidence_holds(tmp_path):
    checked = run(evidence(), tmp_path)
    assert checked.holds
    assert "two_phase threads=1 holds: it is" in checked.reason
    assert {one.phase for one in TrialStore(tmp_path).load().trials} == {"holdout"}


def test_a_check_of_too_few_rounds_tells_nothing(tmp_path):
    checked = run(evidence(), tmp_path, seconds=0.0)
    assert checked.holds is None
    assert "too few clean rounds tell its speed" in checked.reason


def test_a_busy_machine_tells_nothing(tmp_path):
    checked = run(evidence(), tmp_path, seconds=2.0, disturbance=lambda second: "steal")
    assert checked.holds is None
    assert "could not be checked in the time" in checked.reason


def test_a_choice_that_has_become_slower_than_its_evidence_is_demoted(tmp_path):
    checked = run(evidence(speedup=1e6), tmp_path)
    assert checked.holds is False
    assert "slower than its evidence" in checked.reason
    assert "its evidence says 1e+06" in checked.reason


def test_a_choice_that_a_rival_beats_is_demoted(tmp_path):
    rival = Candidate(registry.get("chunked"), registry.get("chunked").space.defaults)
    checked = run(evidence(), tmp_path, rivals=[rival], time_ms=lambda each: 1.0 + (each != rival))
    assert checked.holds is False
    assert "times as long as chunked" in checked.reason


@pytest.mark.parametrize("rival_ms", [0.3, 20.0], ids=["a faster rival", "slower than its evidence"])
def test_beside_a_neighbour_no_difference_of_speed_demotes_a_choice(tmp_path, rival_ms):
    rival = Candidate(registry.get("chunked"), registry.get("chunked").space.defaults)
    checked = run(
        evidence(speedup=1e6),
        tmp_path,
        rivals=[rival],
        time_ms=lambda each: rival_ms if each == rival else 1.0,
        disturbance=lambda second: "other processes used 90 ms of CPU" if second % 1.0 > 0.7 else None,
    )
    assert checked.holds is None
    assert checked.reason.startswith("cannot tell: ")
    assert "try again when it is quiet" in checked.reason


def test_a_choice_that_cannot_be_timed_any_more_is_demoted(tmp_path):
    checked = run(evidence(), tmp_path, failure=lambda each: "boom" if each.backend.name == "two_phase" else None)
    assert checked.holds is False
    assert "cannot be timed any more: boom" in checked.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"source_hash": "0" * 16}, "the source of two_phase has changed"),
        ({"backend": "gone"}, "no backend is called 'gone'"),
        ({"state": "crashed", "measurement": None, "reason": "boom"}, "no measurement to hold it against: boom"),
    ],
)
def test_evidence_that_says_nothing_any_more_is_refused_without_measuring(tmp_path, change, reason):
    checked = run(evidence(**change), tmp_path)
    assert checked.holds is False
    assert reason in checked.reason
    assert checked.comparison is None


@pytest.mark.parametrize(("part", "change"), [("silicon", {"usable_cpus": 4096}), ("software", {"torch": "0.1"})])
def test_evidence_from_elsewhere_is_refused(tmp_path, part, change):
    one = evidence()
    other = replace(one.machine, **{part: replace(getattr(one.machine, part), **change)})
    checked = run(replace(one, machine=other), tmp_path)
    assert checked.holds is False
    assert ("another machine" if part == "silicon" else "other software") in checked.reason
