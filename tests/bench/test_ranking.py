"""Ranking: pairs within clean rounds, no differences where there are none, and who wins a tie."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from helpers.records import block, measurement, trial
from scanlab.bench.objective import difference, pairs_of
from scanlab.bench.ranking import RankedCandidate, choose, decided, noise_floor, ordered, places
from scanlab.bench.samples import Block
from scanlab.contract.verify import Verdict


def rounds_of(*times_ns, disturbed=()):
    """Blocks of so many nanoseconds in rounds one after the other, beside a baseline that takes 1000."""
    return tuple(
        Block((time,), (1_000,), "cb", round=number, disturbed="steal" if number in disturbed else None)
        for number, time in enumerate(times_ns)
    )


def test_differences_are_paired_by_process_and_round():
    one = [block([8], [4]), block([9], [3], process=1)]
    other = [block([2], [4]), block([6], [1], process=2)]
    assert pairs_of(one, other) == [[(one[0], other[0])]]
    assert difference(one, other, "median").value == pytest.approx(math.log(4))


def test_pairs_of_disturbed_rounds_never_count():
    one = rounds_of(2_000, 2_000, 90_000, disturbed={2})
    assert pairs_of(one, rounds_of(1_000, 1_000, 1_000)) == [
        [(each, rounds_of(1_000, 1_000)[each.round]) for each in one[:2]]
    ]
    assert difference(one, rounds_of(1_000, 1_000, 1_000), "median").value == pytest.approx(math.log(2))
    assert pairs_of(one, rounds_of(1_000, 1_000, 1_000, disturbed={0, 1})) == []


@pytest.mark.parametrize(("rounds", "told"), [(1, False), (5, False), (8, True)])
def test_too_few_rounds_tell_nothing_however_alike_they_are(rounds, told):
    slow, _ = places([rounds_of(*[1_500] * rounds), rounds_of(*[1_000] * rounds)], floor=0.0)
    assert slow.distinguishable == told


def test_a_few_rounds_tell_a_large_difference():
    fast = rounds_of(*[1_000] * 8)
    few, far = rounds_of(*[3_000] * 2), rounds_of(*[3_000] * 3)
    assert not places([fast, few], floor=0.0)[1].distinguishable
    assert places([fast, far], floor=0.0)[1].distinguishable


def test_a_candidate_of_too_few_rounds_is_neither_tied_nor_slower():
    _, unknown, never = places([rounds_of(*[1_000] * 8), rounds_of(1_000, 900), ()], floor=math.inf)
    assert (unknown.tied, unknown.distinguishable) == (False, False)
    assert math.isnan(never.behind)


def test_a_few_lucky_blocks_do_not_lead():
    steady, lucky = rounds_of(*[1_000] * 12), rounds_of(*[50] * 3)
    leader, other = places([steady, lucky], floor=0.0)
    assert leader.behind == 0.0
    assert not other.tied


def test_disturbed_rounds_lead_nowhere():
    lucky = rounds_of(*[1_000] * 8, *[10] * 20, disturbed=set(range(8, 28)))
    found = places([lucky, rounds_of(*[900] * 28)], floor=0.0)
    assert [place.behind for place in found] == [pytest.approx(math.log(10 / 9)), 0.0]
    every = rounds_of(*[1_000] * 8, disturbed=set(range(8)))
    assert all(math.isnan(place.behind) and not place.tied for place in places([every, every], floor=0.0))


def test_the_same_candidate_is_seldom_distinguished_from_itself():
    """The A/A test, on simulated noise: heavy tails, and a drift that both share."""
    rng = random.Random(6)
    distinguished = 0
    for _ in range(200):
        series: list[list[Block]] = [[], [], []]
        drift = 1.0
        for number in range(12):
            drift *= math.exp(rng.gauss(0, 0.1))
            samples = [int(1e6 * drift * math.exp(abs(rng.gauss(0, 0.05)))) for _ in range(4)]
            for blocks, sample in zip(series, samples, strict=False):
                blocks.append(Block((sample,), (samples[3],), "cb", round=number))
        found = places(series[:2], noise_floor(series[2], series[0]))
        distinguished += any(each.distinguishable for each in found)
    assert distinguished <= 10


def ranked(*named, floor=0.0, untuned=None):
    """The candidates (name, blocks, rank, number of tunables off their defaults, error, bytes) as ranked."""
    everyone = [(name, blocks, *rest, *(5, 0, 1e-7, 4096)[len(rest) :]) for name, blocks, *rest in named]
    found = []
    for each, place in zip(everyone, places([blocks for _, blocks, *_ in everyone], floor), strict=True):
        name, blocks, rank, nondefault, error, peak_bytes = each
        verdict = Verdict(passed=True, errors={"out": error}, tolerances={"out": 2e-5})
        measured = replace(measurement(*blocks), peak_bytes=peak_bytes)
        made = trial(backend=name, verdict=verdict, measurement=measured)
        found.append(RankedCandidate(made, rank, nondefault, place, is_untuned=name == untuned))
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((5, 0), (4, 3)),
        ((5, 2), (5, 1)),
        ((5, 1), (5, 1, 1e-8)),
        ((5, 1), (5, 1, 1e-8, 1 << 20)),
        ((5, 1), (5, 1, 1e-7, 2048)),
    ],
    ids=str,
)
def test_a_tie_goes_by_rank_then_defaults_then_error_then_memory(one, other):
    blocks = rounds_of(*[500] * 8)
    assert choose(ranked(("one", blocks, *one), ("other", blocks, *other)), 0.0, 2).trial.backend == "other"


@pytest.mark.parametrize(("behind", "wins"), [(1.01, True), (1.04, True), (1.2, False)])
def test_on_a_busy_host_a_simpler_one_wins_only_where_it_is_about_as_fast(behind, wins):
    simple = rounds_of(*[round(500 * behind)] * 12)
    found = ranked(("fast", rounds_of(*[500] * 12)), ("simple", simple, 1), floor=0.5)
    assert all(each.place.tied for each in found)
    assert (choose(found, 0.5, 2).trial.backend == "simple") == wins


@pytest.mark.parametrize(("behind", "stays"), [(1.0, True), (1.2, False)])
def test_what_serves_untuned_is_replaced_only_beyond_the_noise(behind, stays):
    untuned = ("untuned", rounds_of(*[round(1_000 * behind)] * 12), 9)
    found = ranked(("fast", rounds_of(*[1_000] * 12)), untuned, floor=0.05, untuned="untuned")
    assert (choose(found, 0.05, 2).trial.backend == "untuned") == stays


@pytest.mark.parametrize(("behind", "processes", "stays"), [(1.04, 1, True), (1.04, 2, False), (1.1, 1, False)])
def test_one_process_replaces_what_serves_untuned_only_by_what_is_much_faster(behind, processes, stays):
    untuned = ("untuned", rounds_of(*[round(1_000 * behind)] * 12))
    found = ranked(("fast", rounds_of(*[1_000] * 12)), untuned, floor=0.01, untuned="untuned")
    assert (choose(found, 0.01, processes).trial.backend == "untuned") == stays


def test_a_simple_one_that_ties_with_the_fastest_wins_only_if_it_beats_what_serves_untuned():
    """The simple one is not told from either, the fastest is."""
    unsure = rounds_of(*[1_000, 1_120] * 6)
    others = ("fast", rounds_of(*[1_000] * 12)), ("untuned", rounds_of(*[1_060] * 12), 9)
    found = ranked(("simple", unsure, 1), *others, floor=0.02, untuned="untuned")
    assert [each.place.tied for each in found] == [True, True, False]
    assert choose(found, 0.02, 2).trial.backend == "fast"


@pytest.mark.parametrize(("behind", "stays"), [(1.04, True), (1.9, False)])
def test_a_few_rounds_replace_what_serves_untuned_only_by_what_is_much_faster(behind, stays):
    untuned = ("untuned", rounds_of(*[round(1_000 * behind)] * 7))
    found = ranked(("fast", rounds_of(*[1_000] * 7)), untuned, ("slow", rounds_of(*[9_000] * 7)), untuned="untuned")
    assert not found[1].place.interval.known
    assert (choose(found, 0.01, 2).trial.backend == "untuned") == stays


def test_what_serves_untuned_stays_where_it_cannot_be_told():
    found = ranked(("fast", rounds_of(*[1_000] * 12)), ("untuned", rounds_of(1_500, 1_500)), untuned="untuned")
    assert choose(found, 0.0, 2).trial.backend == "untuned"


def test_without_a_leader_nobody_is_chosen():
    found = ranked(("one", rounds_of(1_000, 1_000)), ("other", rounds_of(1_000)))
    assert choose(found, 0.0, 2) is None
    assert ordered(found, None) == tuple(found)


@pytest.mark.parametrize(("control_ns", "over"), [(500, True), (550, False)])
def test_a_comparison_is_not_over_while_one_candidate_differs_from_itself(control_ns, over):
    series = (rounds_of(*[500] * 12), rounds_of(*[2_000] * 12))
    assert decided(series, noise_floor(rounds_of(*[control_ns] * 12), series[0])) == over
