"""Replay: a noisy record chooses wrong as often as its noise says, and more measuring chooses better."""

from __future__ import annotations

import importlib
import math
import random
from pathlib import Path

import pytest

from helpers.records import block, measurement, trial
from scanlab.contract.space import config_key

SCRIPTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def study():
    """The experiment, as it is when it runs as a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("replay")


def noisy(study, spread: float, configs: int = 12, blocks: int = 40):
    """A record whose configurations are 5 % apart, with so much noise on every block."""
    rng = random.Random(7)
    bags = {
        config_key({"a": index}): [0.05 * index + rng.gauss(0, spread) for _ in range(blocks)]
        for index in range(configs)
    }
    return study.Record("made", {"a": list(range(configs))}, bags)


def test_without_noise_trying_everything_is_never_wrong(study):
    outcome = study.replay(noisy(study, 0.0), study.Policy("random", 12, 1, 1, 0), repeats=10)
    assert (outcome.wrong, outcome.regret, outcome.optimism) == (0.0, 0.0, 0.0)
    assert outcome.blocks == 12


def test_with_noise_a_single_block_is_often_wrong_and_a_comparison_repairs_it(study):
    record = noisy(study, 0.1)
    hasty = study.replay(record, study.Policy("random", 12, 1, 1, 0))
    compared = study.replay(record, study.Policy("random", 12, 1, 6, 25))
    assert hasty.wrong > 0.3
    assert compared.wrong < hasty.wrong / 2
    assert compared.regret < hasty.regret
    assert compared.blocks == pytest.approx(12 + 6 * 25, rel=0.01)


def test_a_number_that_chose_is_optimistic(study):
    """The winner's curse, which a hold-out run is for."""
    assert study.replay(noisy(study, 0.1), study.Policy("random", 12, 1, 1, 0)).optimism > 0.03


def test_the_same_seed_is_the_same_replay(study):
    record, policy = noisy(study, 0.1), study.Policy("tpe", 6, 2, 3, 4)
    assert study.replay(record, policy, repeats=5, seed=3) == study.replay(record, policy, repeats=5, seed=3)


def test_a_record_is_made_of_the_blocks_of_search_and_comparison_together(study):
    def timed(chunk, ratio, **changes):
        blocks = [block([int(1e6 * ratio)], [1_000_000])]
        return trial(config={"chunk": chunk, "threads": 1}, measurement=measurement(*blocks), **changes)

    trials = [timed(16, 1.0), timed(32, 2.0), timed(16, 1.1, phase="comparison", started_at=2000.0)]
    record = study.record_of([*trials, trial(state="crashed", measurement=None, verdict=None, reason="boom")])
    assert record.values == {"chunk": [16, 32], "threads": [1]}
    assert record.bags[config_key({"chunk": 16, "threads": 1})] == [
        pytest.approx(0.0),
        pytest.approx(math.log(1.1), abs=1e-6),
    ]


def test_trials_of_several_kinds_make_no_record(study):
    with pytest.raises(ValueError, match="2 configurations of 2 kinds"):
        study.record_of([trial(), trial(backend="other", config={"chunk": 8})])
    with pytest.raises(ValueError, match="1 configurations of 1 kinds"):
        study.record_of([trial()])


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_simulated_search_tries_so_many_different_configurations(study, sampler):
    asked = []

    def outcome(config):
        asked.append(config_key(config))
        return None if config["a"] == 3 else float(config["a"])

    study.simulate({"a": list(range(20))}, outcome, trials=8, sampler=sampler, seed=0)
    known = [key for key in asked if key != config_key({"a": 3})]
    assert len(asked) == len(set(asked))
    assert len(known) == 8
