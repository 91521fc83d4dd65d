"""Checking a choice: it holds while nothing has changed, and is demoted with the reason when something has."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from helpers.fakes import TINY, sleepy
from helpers.records import block, measurement, trial
from scanlab.bench import worker as heat
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import Entrant
from scanlab.contract import registry
from scanlab.tuning import recheck as module
from scanlab.tuning.recheck import check

MS = 1_000_000
TWO_PHASE = registry.get("two_phase")


def evidence(speedup=1.0, **changes):
    """A trial of two_phase that was so many times as fast as the reference."""
    fields = {
        "problem": TINY,
        "backend": "two_phase",
        "source_hash": TWO_PHASE.source_hash,
        "config": {"threads": 1},
        "measurement": measurement(*(block([MS], [int(speedup * MS)]) for _ in range(6))),
    }
    return trial(**(fields | changes))


def run(chosen, tmp_path, seconds=1.5, **options):
    return check(chosen, TrialStore(tmp_path), time.monotonic() + seconds, processes=0, **options)


def test_a_choice_that_repeats_its_evidence_holds(tmp_path):
    checked = run(evidence(speedup=0.1), tmp_path)
    assert checked.holds
    assert "two_phase threads=1 holds: it is" in checked.reason
    assert {one.phase for one in TrialStore(tmp_path).load().trials} == {"holdout"}


def test_a_check_of_too_few_rounds_tells_nothing(tmp_path):
    checked = run(evidence(speedup=0.1), tmp_path, seconds=0.0)
    assert checked.holds is None
    assert "too few rounds fitted to tell its speed" in checked.reason


def test_a_choice_that_has_become_slower_than_its_evidence_is_demoted(tmp_path):
    checked = run(evidence(speedup=1e6), tmp_path)
    assert not checked.holds
    assert "slower than its evidence" in checked.reason
    assert "its evidence says 1e+06" in checked.reason


def test_a_choice_that_a_rival_beats_is_demoted(tmp_path):
    slow = sleepy("slow", (40.0,))
    chosen = evidence(backend="slow", config={"delay_ms": 40.0}, source_hash=slow.source_hash, speedup=1e-6)
    module_get = registry.get
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.registry, "get", lambda name: slow if name == "slow" else module_get(name))
        checked = run(chosen, tmp_path, seconds=8.0, rivals=[Entrant(TWO_PHASE, {"threads": 1})])
    assert not checked.holds
    assert "times as long as two_phase threads=1 now" in checked.reason


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
    assert not checked.holds
    assert reason in checked.reason
    assert checked.race is None


@pytest.mark.parametrize(("part", "change"), [("silicon", {"usable_cpus": 4096}), ("software", {"torch": "0.1"})])
def test_evidence_from_elsewhere_is_refused(tmp_path, part, change):
    one = evidence()
    other = replace(one.machine, **{part: replace(getattr(one.machine, part), **change)})
    checked = run(replace(one, machine=other), tmp_path)
    assert not checked.holds
    assert ("another machine" if part == "silicon" else "other software") in checked.reason


def test_a_scan_that_has_become_wrong_is_demoted(tmp_path):
    broken = replace(TWO_PHASE, make=lambda problem, config: lambda *inputs: (inputs[0].u, inputs[0].A))
    module_get = registry.get
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.registry, "get", lambda name: broken if name == "two_phase" else module_get(name))
        checked = run(evidence(), tmp_path)
    assert not checked.holds
    assert "cannot be timed any more" in checked.reason


def test_a_check_whose_processes_die_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(heat.sys, "executable", "/bin/false")
    checked = check(evidence(), TrialStore(tmp_path), time.monotonic() + 1.5, processes=1)
    assert checked.holds is None
    assert "could not be checked in the time" in checked.reason
