"""The pacer: taken where the anchor is slow, and ratios that go through it stay ratios to the anchor."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest

from helpers.fakes import TINY, crashing, fake, sleepy
from helpers.records import block, measurement
from scanlab.bench.compare import race
from scanlab.bench.pace import Pace, anchor_and_pace
from scanlab.bench.prove import Setting, prove
from scanlab.bench.samples import Measurement
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import Entrant
from scanlab.contract import registry
from scanlab.contract.problem import make_inputs
from scanlab.errors import RejectedError
from scanlab.tuning.budget import Budget
from scanlab.tuning.tune import tune

MS = 1_000_000
SLOW = Entrant(sleepy("slow", (30.0,)), {})


@pytest.fixture(scope="module")
def setting():
    return Setting.of(TINY, make_inputs(TINY), "made", seed=0)


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


def test_the_highest_rung_that_runs_is_timed_in_the_stead_of_a_slow_anchor(setting):
    quick = sleepy("quick", (0.0,), rank=3)
    low, higher = sleepy("low", (0.0,), rank=1), crashing()
    anchor, pace, said = anchor_and_pace(SLOW, [low, quick, higher], setting, soon())
    assert anchor.backend is SLOW.backend
    assert pace.pacer.backend is quick
    assert pace.anchor_s == pytest.approx(0.03, rel=0.5)
    assert said == ()


def test_an_anchor_that_is_not_slow_is_timed_itself(setting):
    anchor, pace, said = anchor_and_pace(Entrant(registry.get("reference"), {}), [sleepy()], setting, soon())
    assert (anchor.backend.name, pace, said) == ("reference", None, ())


def test_an_anchor_that_the_budget_does_not_hold_gives_way_to_the_pacer(setting):
    def stuck(scan, config):
        time.sleep(60)
        return scan

    anchor, pace, said = anchor_and_pace(Entrant(fake("stuck", stuck), {}), [sleepy("quick", (0.0,))], setting, soon(1))
    assert (anchor.backend.name, pace) == ("quick", None)
    assert "stuck is too slow an anchor for this budget: everything is timed against quick" in said[0]


def test_an_anchor_that_cannot_run_is_refused_though_there_is_a_pacer(setting):
    with pytest.raises(RejectedError, match="the anchor crashing cannot be timed"):
        anchor_and_pace(Entrant(crashing(), {}), [sleepy()], setting, soon())


def test_a_ratio_through_the_pacer_is_the_ratio_to_the_anchor(setting):
    pacer = prove(sleepy("quick", (0.0,)), {}, setting)
    beside = measurement(*(block([2 * MS], [1 * MS]) for _ in range(6)))
    pace = Pace(pacer, tuple(block([spread * MS], [1 * MS]) for spread in (7, 7, 8, 8, 9, 9)))
    through = pace.applied(beside)
    assert through.speedup == pytest.approx(4.0)
    assert through.log_ratios == pytest.approx([-math.log(4.0)] * 6)
    assert through.anchor_median_ms == 8.0
    assert through.pacer == "quick delay_ms=0.0"
    assert through.speedup_interval == pytest.approx((3.5, 4.5))
    assert replace(through, anchor_blocks=pace.anchor_blocks[:3]).speedup_interval == (0.0, math.inf)
    assert through.paced_interval == pytest.approx((-math.log(4.0),) * 2)
    assert Measurement.from_json(through.to_json()) == through


def test_a_record_from_before_there_were_pacers_is_read():
    values = measurement().to_json()
    old = {name: value for name, value in values.items() if name not in ("pacer", "anchor_blocks")}
    assert Measurement.from_json(old) == measurement()


def test_a_pacer_and_the_blocks_of_its_anchor_go_together(setting):
    with pytest.raises(ValueError, match="needs the anchor's blocks beside it"):
        Measurement.from_json(measurement().to_json() | {"pacer": "quick"})


def test_a_race_beside_a_pacer_never_calls_the_anchor(setting, tmp_path):
    calls = []

    def counted(scan, config):
        def call(*inputs):
            calls.append(1)
            return scan(*inputs)

        return call

    slow = prove(fake("counted", counted), {}, setting)
    pace = Pace(prove(sleepy("quick", (0.0,)), {}, setting), (block([80 * MS], [1 * MS]),) * 3)
    before = len(calls)
    outcome = race([Entrant(sleepy("one", (1.0,)), {})], slow, setting, TrialStore(tmp_path), soon(0.5), pace=pace)
    assert len(calls) == before
    (trial,) = outcome.trials
    assert (trial.measurement.anchor, trial.measurement.pacer) == ("counted", "quick delay_ms=0.0")
    assert trial.measurement.speedup > 1.0


def test_a_search_with_a_slow_anchor_pays_for_it_a_few_times(tmp_path, monkeypatch):
    monkeypatch.setattr("scanlab.tuning.tune.RACE_S", 0.1)
    found = tune(TINY, make_inputs(TINY), [sleepy()], Budget(trials=3), TrialStore(tmp_path), anchor=SLOW)
    searched = [trial.measurement for trial in found.trials]
    assert {each.pacer for each in searched} == {"sleepy delay_ms=3.0"}
    assert len({each.anchor_blocks for each in searched}) == 1
    assert found.winner.config == {"delay_ms": 0.0}
    assert found.winner.measurement.speedup > 5
    # What is recorded beside the pacer is known to a search that has none: both are ratios to the anchor.
    monkeypatch.setattr("scanlab.bench.pace.WORTHWHILE", math.inf)
    assert tune(TINY, make_inputs(TINY), [sleepy()], Budget(trials=3), TrialStore(tmp_path), anchor=SLOW).new == 0
