"""Objectives: the tail is that of all rounds together, and is unknown where too few samples have one."""

from __future__ import annotations

import math
import random

import pytest

from scanlab.bench.objective import difference, level
from scanlab.bench.ranking import noise_floor, places
from scanlab.bench.samples import Block


def rounds(count, slow_share, slow=3.0, samples=9, seed=0, process=0):
    """Rounds whose samples take 1000 ns, a share of them `slow` times as long, beside a baseline of 1000 ns."""
    rng = random.Random(seed)

    def sample():
        return round(1_000 * (slow if rng.random() < slow_share else 1.0) * (1 + 0.01 * rng.random()))

    return [
        Block(tuple(sample() for _ in range(samples)), (1_000,), "", round=number, process=process)
        for number in range(count)
    ]


def test_a_tail_that_the_median_does_not_see_decides_by_the_95th_percentile():
    steady, tailed = rounds(30, 0.0), rounds(30, 0.12, seed=1)
    assert abs(difference(tailed, steady, "median").value) < 0.01
    value, interval = difference(tailed, steady, "p95")
    assert value == pytest.approx(math.log(3), rel=0.05)
    assert interval.low > 0
    leader, other = places([steady, tailed], floor=0.05, objective="p95")
    assert leader.behind == 0.0
    assert other.distinguishable


def test_a_tail_rarer_than_the_percentile_is_none():
    assert abs(difference(rounds(40, 0.02, seed=1), rounds(40, 0.0), "p95").value) < 0.02


def test_too_few_samples_have_no_tail():
    assert not level(rounds(7, 0.1), "p95").interval.known
    assert level(rounds(8, 0.1), "p95").interval.known
    assert math.isnan(level([], "p95").value)


def test_two_runs_alike_are_seldom_distinguished_by_their_tails():
    shown = 0
    for seed in range(40):
        one, other, control = (rounds(20, 0.08, seed=3 * seed + each) for each in range(3))
        floor = noise_floor(control, one, "p95")
        shown += any(place.distinguishable for place in places([one, other], floor, "p95"))
    assert shown <= 2


def test_processes_are_resampled_before_rounds():
    alike = [*rounds(10, 0.0), *rounds(10, 0.0, seed=1, process=1)]
    apart = [*rounds(10, 0.0), *rounds(10, 1.0, seed=1, process=1)]
    assert level(apart, "p95").interval.high - level(apart, "p95").interval.low > 1.0
    assert level(alike, "p95").interval.high < 0.02
