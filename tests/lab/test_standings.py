"""What the blocks of a race say: pairs within rounds, and no differences where there are none."""

from __future__ import annotations

import math
import random

import pytest
from lab_records import block

from scanlab.lab import standings as module
from scanlab.lab.intervals import bootstrap
from scanlab.lab.measurement import Block
from scanlab.lab.standings import paired


def test_differences_are_paired_by_process_and_round():
    one = [block([8], [4]), block([9], [3], process=1)]
    other = [block([2], [4]), block([6], [1], process=2)]
    assert paired(one, other) == [[pytest.approx(math.log(4))]]


def test_pairs_of_disturbed_rounds_are_left_out_where_there_are_enough_others():
    calm = [Block((2,), (1,), "ca", round=number) for number in range(8)]
    odd = Block((90,), (1,), "ca", round=8, disturbed="steal")
    other = [Block((1,), (1,), "ca", round=number) for number in range(9)]
    assert paired([*calm, odd], other) == [[pytest.approx(math.log(2))] * 8]
    assert len(paired([*calm[:3], odd], other)[0]) == 4


@pytest.mark.parametrize(("rounds", "told"), [(1, False), (7, False), (8, True)])
def test_too_few_rounds_tell_nothing_however_alike_they_are(rounds, told):
    slow = [Block((2_000,), (1_000,), "ca", round=number) for number in range(rounds)]
    fast = [Block((1_000,), (1_000,), "ca", round=number) for number in range(rounds)]
    (behind, interval), _ = module._behind([slow, fast])
    assert behind == pytest.approx(math.log(2))
    assert (interval.low > 0) == told


def test_the_same_configuration_is_seldom_told_apart_from_itself():
    """The A/A test, on simulated noise: heavy tails, and a drift that both share."""
    rng = random.Random(6)
    told_apart = 0
    for _ in range(200):
        rounds: list[list[Block]] = [[], [], []]
        drift = 1.0
        for number in range(12):
            drift *= math.exp(rng.gauss(0, 0.1))
            samples = [int(1e6 * drift * math.exp(abs(rng.gauss(0, 0.05)))) for _ in range(4)]
            for blocks, sample in zip(rounds, samples, strict=False):
                blocks.append(Block((sample,), (samples[3],), "ca", round=number))
        ((_, _), (median, interval)) = sorted(module._behind(rounds[:2]))
        floor = max(abs(bound) for bound in bootstrap(paired(rounds[2], rounds[0])))
        told_apart += interval.low > 0 and median > floor
    assert told_apart <= 10
