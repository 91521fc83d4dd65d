"""What the blocks of a race say: pairs within rounds, no differences where there are none, and who wins a tie."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from helpers.records import block, measurement, trial
from scanlab.bench import ranking as module
from scanlab.bench.ranking import decided, paired, ranked
from scanlab.bench.samples import Block
from scanlab.bench.stats import bootstrap
from scanlab.bench.worker import Heat, Lane
from scanlab.contract.verify import Verdict


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


def rounds_of(*times_ns):
    """Blocks of so many nanoseconds in rounds one after the other, beside an anchor that takes 1000."""
    return tuple(Block((time,), (1_000,), "ca", round=number) for number, time in enumerate(times_ns))


def entrant(backend, blocks, error=1e-7, peak_bytes=4096):
    verdict = Verdict(passed=True, errors={"out": error}, tolerances={"out": 2e-5})
    return trial(backend=backend, verdict=verdict, measurement=replace(measurement(*blocks), peak_bytes=peak_bytes))


@pytest.mark.parametrize(
    ("simple", "other"),
    [
        (((5, 0), (4, 3)), {}),
        (((5, 2), (5, 1)), {}),
        (((5, 1), (5, 1)), {"error": 1e-8}),
        (((5, 1), (5, 1)), {"error": 1e-8, "peak_bytes": 1 << 20}),
        (((5, 1), (5, 1)), {"peak_bytes": 2048}),
    ],
    ids=str,
)
def test_a_tie_goes_by_rung_then_departures_then_error_then_memory(simple, other):
    trials = [entrant("one", rounds_of(*[500] * 8)), entrant("other", rounds_of(*[500] * 8), **other)]
    by_trial = {each.id: simplicity for each, simplicity in zip(trials, simple, strict=True)}
    winner, second = ranked(trials, by_trial, dict.fromkeys(by_trial), floor=0.0)
    assert (winner.trial.backend, second.tied) == ("other", True)


@pytest.mark.parametrize(("behind", "wins"), [(1.01, True), (1.04, True), (1.2, False)])
def test_on_a_restless_machine_a_simpler_one_wins_only_where_it_is_about_as_fast(behind, wins):
    trials = [entrant("fast", rounds_of(*[500] * 12)), entrant("simple", rounds_of(*[round(500 * behind)] * 12))]
    by_trial = {trials[0].id: (5, 0), trials[1].id: (1, 0)}
    standings = ranked(trials, by_trial, dict.fromkeys(by_trial), floor=0.5)
    assert all(standing.tied for standing in standings)
    assert (standings[0].trial.backend == "simple") == wins


@pytest.mark.parametrize(("twin_ns", "over"), [(500, True), (550, False)])
def test_a_race_is_not_over_while_one_configuration_differs_from_itself(twin_ns, over):
    lanes = (Lane(rounds_of(*[500] * 12)), Lane(rounds_of(*[2_000] * 12)))
    assert decided([Heat(lanes, doubled=0, twin=rounds_of(*[twin_ns] * 12), anchor_calls=1, rounds=12)]) == over
