"""A heat in a fresh process: the same as here, told apart by its process, and survivable."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest

from helpers.fakes import TINY, sleepy
from scanlab.bench import worker as module
from scanlab.bench.compare import race
from scanlab.bench.prove import Setting
from scanlab.bench.store import TrialStore
from scanlab.bench.timing import Arm
from scanlab.bench.worker import Entrant, Heat, is_installed, run_fresh_heat, run_heat
from scanlab.contract import registry
from scanlab.contract.backend import at_most
from scanlab.contract.problem import make_inputs

REFERENCE = Entrant(registry.get("reference"), {"threads": 1})
TWO_PHASE = Entrant(registry.get("two_phase"), {"threads": 1})


@pytest.fixture(scope="module")
def setting():
    return Setting.of(TINY, make_inputs(TINY), "made", seed=0)


def test_a_heat_survives_json(setting):
    heat = run_heat([REFERENCE, TWO_PHASE], REFERENCE, setting, time.monotonic(), process=3)
    assert Heat.from_json(json.loads(json.dumps(dataclasses.asdict(heat)))) == heat
    assert all(block.process == 3 for lane in heat.lanes for block in lane.blocks)
    assert heat.doubled in (0, 1)
    assert len(heat.twin) == heat.rounds


def test_slow_entrants_run_in_fewer_rounds_but_in_enough_of_them():
    def runner(cost_s):
        return module._Runner(None, Arm(lambda: None, "cpu", 1, calls=1, samples=1, cost_s=cost_s))

    quick, usual, _, slow, slowest = runners = [runner(cost_s) for cost_s in (0.001, 0.01, 0.01, 1.0, 50.0)]
    anchor = Arm(lambda: None, "cpu", 1, calls=1, samples=1, cost_s=0.02)
    module._set_pace(runners, anchor, time.monotonic() + 1e6, most_rounds=60)
    assert (quick.every, usual.every) == (1, 1)
    assert 1 < slow.every <= slowest.every == 60 // module.FEWEST_ROUNDS


def test_slow_entrants_are_always_timed_beside_the_anchor(setting):
    entrants = [Entrant(sleepy("slow", (60.0,)), {}), Entrant(sleepy("fast", (0.1,)), {})]
    heat = run_heat(entrants, REFERENCE, setting, time.monotonic() + 2)
    assert all(block.anchor_ns and block.candidate_ns for lane in heat.lanes for block in lane.blocks)


def test_a_race_in_fresh_processes_pairs_within_each(setting, tmp_path, monkeypatch):
    monkeypatch.setattr("scanlab.bench.compare.MOST_ROUNDS", 10)
    rounds = []
    outcome = race(
        [REFERENCE, TWO_PHASE],
        REFERENCE,
        setting,
        TrialStore(tmp_path),
        time.monotonic() + 90,
        processes=2,
        on_round=rounds.append,
    )
    assert outcome.processes == 2
    assert rounds == list(range(1, outcome.rounds + 1))
    for standing in outcome.standings:
        assert {block.process for block in standing.trial.measurement.blocks} == {0, 1}
        assert standing.trial.verdict.passed
    assert TrialStore(tmp_path).load().trials


def test_a_process_that_dies_is_reported_and_decides_nothing(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    outcome = race([TWO_PHASE], REFERENCE, setting, TrialStore(tmp_path), time.monotonic() + 5, processes=2)
    assert outcome.winner is None
    assert len([notice for notice in outcome.notices if "of the race gave nothing: exit status 1" in notice]) == 2
    assert TrialStore(tmp_path).load().trials == ()


def test_a_process_that_hangs_is_killed(setting):
    now = time.monotonic()
    outcome = run_fresh_heat([TWO_PHASE], REFERENCE, setting, now + 600, now + 0.5, process=0)
    assert isinstance(outcome, str)
    assert "still ran when its time was over" in outcome
    assert time.monotonic() - now < 30


def test_backends_that_a_fresh_process_cannot_find_race_here_and_it_is_said(setting, tmp_path):
    outcome = race([Entrant(sleepy(), {})], REFERENCE, setting, TrialStore(tmp_path), time.monotonic() + 1, processes=3)
    assert outcome.processes == 1
    assert any("sleepy cannot be found by name" in notice for notice in outcome.notices)
    assert outcome.winner is not None


def test_a_narrowed_backend_is_still_the_installed_one():
    assert is_installed(registry.get("two_phase"))
    assert is_installed(at_most(registry.get("two_phase"), 1))
    assert not is_installed(sleepy())
    assert not is_installed(sleepy("two_phase"))
