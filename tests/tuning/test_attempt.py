"""An attempt of the search: as many blocks as it is worth, and no more."""

from __future__ import annotations

import math
import random
import time

import pytest

from helpers.fakes import TINY, sleepy, wrong
from helpers.records import block, measurement
from scanlab.bench.prove import Setting, prove
from scanlab.contract import registry
from scanlab.contract.problem import make_inputs
from scanlab.tuning import attempt as module
from scanlab.tuning.attempt import attempt, enough, hopeless

MS = 1_000_000


@pytest.fixture(scope="module")
def scene():
    setting = Setting.of(TINY, make_inputs(TINY), "made", seed=0)
    anchor = prove(registry.get("reference"), {"threads": 1}, setting)
    return setting, anchor, anchor.arm(setting)


def of(ratios, disturbed=None):
    """A measurement whose blocks have these ratios to the anchor."""
    return measurement(*(block([int(MS * ratio)], [MS], disturbed=disturbed) for ratio in ratios))


def test_one_calm_look_suffices_for_the_hopeless():
    assert "2.5 times as long" in hopeless(of([2.5]), of([1.0, 1.0, 1.0]))
    assert hopeless(of([1.9]), of([1.0, 1.0, 1.0])) is None


def test_a_disturbed_look_does_not():
    assert hopeless(of([9.0], disturbed="steal"), of([1.0, 1.0, 1.0])) is None
    assert hopeless(of([9.0] * 3, disturbed="steal"), of([1.0, 1.0, 1.0])) is not None


def test_the_slightly_slower_is_given_up_once_the_intervals_are_apart():
    best = of([1.0, 1.01, 0.99])
    assert "intervals are apart" in hopeless(of([1.2, 1.21, 1.22]), best)
    assert hopeless(of([1.2, 1.21]), best) is None
    assert hopeless(of([1.2, 0.95, 1.3]), best) is None


def test_blocks_are_repeated_until_sure_or_until_there_are_many():
    assert not enough(of([1.0, 1.0]))
    assert enough(of([1.0, 1.001, 1.002]))
    assert not enough(of([1.0, 1.3, 0.8]))
    assert not enough(of([1.0, 1.0, 1.0], disturbed="steal"))
    assert enough(of([1.0, 1.3] * (module.MOST_BLOCKS // 2), disturbed="steal"))


def test_what_went_well_is_recorded_with_its_samples_and_memory(scene):
    trial, scan = attempt(sleepy(), {"delay_ms": 1.0}, *scene, best=None, rng=random.Random(0))
    assert trial.state == "ok"
    assert len(trial.measurement.blocks) >= module.FEWEST_BLOCKS
    assert trial.measurement.anchor == "reference"
    assert scan.config == {"delay_ms": 1.0}
    assert trial.duration_s > 0


def test_the_pruned_keeps_what_was_seen(scene):
    fast, _ = attempt(sleepy(), {"delay_ms": 0.0}, *scene, best=None, rng=random.Random(0))
    trial, scan = attempt(sleepy(), {"delay_ms": 3.0}, *scene, best=fast.measurement, rng=random.Random(0))
    assert trial.state == "pruned"
    assert "times as long" in trial.reason
    assert len(trial.measurement.blocks) <= module.FEWEST_BLOCKS
    assert scan is None


def test_the_wrong_is_never_timed(scene):
    trial, scan = attempt(wrong(), {"scale": 2.0}, *scene, best=None, rng=random.Random(0))
    assert trial.state == "wrong"
    assert trial.measurement is None
    assert scan is None


def test_a_late_attempt_takes_one_block(scene):
    trial, _ = attempt(sleepy(), {}, *scene, best=None, rng=random.Random(0), deadline=time.monotonic())
    assert len(trial.measurement.blocks) == 1
    assert math.isfinite(trial.measurement.log_ratio)
