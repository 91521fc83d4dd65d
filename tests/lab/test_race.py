"""The race: the faster wins with an interval, what cannot be told apart ties, and a tie goes to the simpler."""

from __future__ import annotations

import math
import random
import time

import pytest
from lab_fakes import TINY, crashing, fake, sleepy, wrong
from lab_records import block

from scanlab import registry
from scanlab.errors import RejectedError
from scanlab.lab import race as module
from scanlab.lab.heat import Entrant
from scanlab.lab.intervals import bootstrap
from scanlab.lab.measure import Block
from scanlab.lab.prove import Failure, Proven, Setting, prove
from scanlab.lab.race import paired, race
from scanlab.lab.results import Results
from scanlab.problem import make_inputs

REFERENCE = Entrant(registry.get("reference"), {"threads": 1})


@pytest.fixture(scope="module")
def setting():
    return Setting.of(TINY, make_inputs(TINY), "made", seed=0)


def run(entrants, setting, tmp_path, seconds=2.0, **options):
    return race(entrants, REFERENCE, setting, Results(tmp_path), time.monotonic() + seconds, **options)


def test_the_faster_wins_and_the_sentence_says_by_how_much(setting, tmp_path):
    slow, fast = Entrant(sleepy("slow", (25.0,)), {}), Entrant(sleepy("fast", (0.0,)), {})
    outcome = run([slow, fast], setting, tmp_path)
    assert [standing.trial.backend for standing in outcome.standings] == ["fast", "slow"]
    assert outcome.winner.behind == 0.0
    assert outcome.standings[1].behind > 0
    assert outcome.why.startswith("fast delay_ms=0.0: ")
    assert "slow delay_ms=25.0" in outcome.why


def test_every_entrant_is_recorded_with_samples_that_the_anchor_shared(setting, tmp_path):
    entrants = [Entrant(sleepy("one"), {"delay_ms": 1.0}), Entrant(sleepy("two"), {"delay_ms": 3.0})]
    outcome = run(entrants, setting, tmp_path)
    recorded = Results(tmp_path).load().trials
    assert {trial.id for trial in recorded} == {trial.id for trial in outcome.trials}
    assert {trial.phase for trial in recorded} == {"race"}
    one, two = (standing.trial.measurement for standing in outcome.standings)
    assert one.anchor == "reference"
    shared = {each.round: each.anchor_ns for each in one.blocks}
    assert all(shared[each.round] == each.anchor_ns for each in two.blocks if each.round in shared)


def test_two_of_a_kind_tie_and_the_lower_rung_wins(setting, tmp_path):
    high, low = sleepy("high", (2.0,), rung=9), sleepy("low", (2.0,), rung=1)
    outcome = run([Entrant(high, {}), Entrant(low, {})], setting, tmp_path, seconds=4.0)
    assert outcome.winner.trial.backend == "low"
    assert [standing.trial.backend for standing in outcome.ties] == ["high"]
    assert "tied with high" in outcome.why


def test_what_is_wrong_or_crashes_is_dropped_with_its_reason(setting, tmp_path):
    entrants = [Entrant(wrong(), {"scale": 2.0}), Entrant(crashing(), {}), Entrant(sleepy(), {})]
    outcome = run(entrants, setting, tmp_path)
    assert [standing.trial.backend for standing in outcome.standings] == ["sleepy"]
    assert {trial.backend: trial.state for trial in outcome.dropped} == {"wrong": "wrong", "crashing": "crashed"}
    assert "nothing else ran" in outcome.why


def test_one_that_crashes_in_mid_race_does_not_end_it(setting, tmp_path):
    # Late enough to be proved and to take part for a while.
    late = crashing(at_call=60)
    assert isinstance(prove(late, {}, setting), Proven)
    outcome = run([Entrant(late, {}), Entrant(sleepy(), {"delay_ms": 1.0})], setting, tmp_path)
    assert [trial.backend for trial in outcome.dropped] == ["crashing"]
    assert "the kernel fell over" in outcome.dropped[0].reason
    assert outcome.winner.trial.backend == "sleepy"


def test_nobody_wins_where_nobody_runs(setting, tmp_path):
    outcome = run([Entrant(crashing(), {})], setting, tmp_path)
    assert outcome.winner is None
    assert outcome.why == "No winner: no entrant could run."


def test_an_anchor_that_cannot_run_is_refused(setting, tmp_path):
    with pytest.raises(RejectedError, match="the kernel fell over"):
        race([REFERENCE], Entrant(crashing(), {}), setting, Results(tmp_path), time.monotonic() + 1)


def test_every_entrant_runs_at_least_once_even_without_time(setting, tmp_path):
    outcome = run([Entrant(sleepy(), {})], setting, tmp_path, seconds=0.0)
    assert outcome.rounds == 1
    assert any("rounds that fitted into the time for the race: 1, fewer than 8" in each for each in outcome.notices)
    assert "times as fast as reference threads=1 (95 %: unknown)" in outcome.why
    assert outcome.noise_floor == math.inf


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
        rounds: list[list[module.Block]] = [[], [], []]
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


def test_a_failure_carries_the_reason(setting):
    failure = prove(fake("odd", lambda scan, config: 1 / 0), {}, setting)
    assert isinstance(failure, Failure)
    assert failure.state == "crashed"
    assert "ZeroDivisionError" in failure.reason
