"""Replay: a noisy record chooses wrong as often as its noise says, and more measuring chooses better."""

from __future__ import annotations

import math
import random

import pytest

from helpers.records import block, measurement, trial
from scanlab.contract.space import config_key
from scanlab.tuning.replay import Policy, Record, record_of, replay, simulate


def noisy(spread: float, configs: int = 12, blocks: int = 40) -> Record:
    """A record whose configurations are 5 % apart, with so much noise on every block."""
    rng = random.Random(7)
    bags = {
        config_key({"a": index}): [0.05 * index + rng.gauss(0, spread) for _ in range(blocks)]
        for index in range(configs)
    }
    return Record("made", {"a": list(range(configs))}, bags)


def test_without_noise_trying_everything_is_never_wrong():
    outcome = replay(noisy(0.0), Policy("random", 12, 1, 1, 0), repeats=10)
    assert (outcome.wrong, outcome.regret, outcome.optimism) == (0.0, 0.0, 0.0)
    assert outcome.blocks == 12


def test_with_noise_a_single_block_is_often_wrong_and_a_race_repairs_it():
    record = noisy(0.1)
    hasty = replay(record, Policy("random", 12, 1, 1, 0))
    raced = replay(record, Policy("random", 12, 1, 6, 25))
    assert hasty.wrong > 0.3
    assert raced.wrong < hasty.wrong / 2
    assert raced.regret < hasty.regret
    assert raced.blocks == pytest.approx(12 + 6 * 25, rel=0.01)


def test_a_number_that_chose_is_optimistic():
    """The winner's curse, which a hold-out run is for."""
    assert replay(noisy(0.1), Policy("random", 12, 1, 1, 0)).optimism > 0.03


def test_the_same_seed_is_the_same_replay():
    record, policy = noisy(0.1), Policy("tpe", 6, 2, 3, 4)
    assert replay(record, policy, repeats=5, seed=3) == replay(record, policy, repeats=5, seed=3)


def test_a_record_is_made_of_the_blocks_of_search_and_race_together():
    def timed(chunk, ratio, **changes):
        blocks = [block([int(1e6 * ratio)], [1_000_000])]
        return trial(config={"chunk": chunk, "threads": 1}, measurement=measurement(*blocks), **changes)

    trials = [timed(16, 1.0), timed(32, 2.0), timed(16, 1.1, phase="race", started_at=2000.0)]
    record = record_of([*trials, trial(state="crashed", measurement=None, verdict=None, reason="boom")])
    assert record.values == {"chunk": [16, 32], "threads": [1]}
    assert record.bags[config_key({"chunk": 16, "threads": 1})] == [
        pytest.approx(0.0),
        pytest.approx(math.log(1.1), abs=1e-6),
    ]


def test_trials_of_several_kinds_make_no_record():
    with pytest.raises(ValueError, match="2 configurations of 2 kinds"):
        record_of([trial(), trial(backend="other", config={"chunk": 8})])
    with pytest.raises(ValueError, match="1 configurations of 1 kinds"):
        record_of([trial()])


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_simulated_search_tries_so_many_different_configurations(sampler):
    asked = []

    def outcome(config):
        asked.append(config_key(config))
        return None if config["a"] == 3 else float(config["a"])

    simulate({"a": list(range(20))}, outcome, trials=8, sampler=sampler, seed=0)
    known = [key for key in asked if key != config_key({"a": 3})]
    assert len(asked) == len(set(asked))
    assert len(known) == 8
