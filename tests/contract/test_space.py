"""Spaces: defaults first, only legal configurations, nothing clamped."""

from __future__ import annotations

import pytest

from scanlab.contract.problem import ScanProblem
from scanlab.contract.space import Space, Tunable, config_key
from scanlab.errors import ConfigError

PROBLEM = ScanProblem(batch=1, dim=4, length=20)


def no_longer_than_the_sequence(config, problem):
    if config["chunk"] > max(16, problem.length):
        return f"chunk {config['chunk']} is longer than the sequence, {problem.length}"
    return None


SPACE = Space(
    (Tunable("chunk", (16, 32, 64), default=16), Tunable("fast", (False, True), default=True)),
    forbids=no_longer_than_the_sequence,
)


def test_configs_are_the_legal_ones_with_the_defaults_first():
    configs = list(SPACE.configs(PROBLEM))
    assert configs == [{"chunk": 16, "fast": True}, {"chunk": 16, "fast": False}]
    assert len(list(SPACE.configs(PROBLEM.replace(length=64)))) == 6


def test_one_at_a_time_are_the_defaults_and_each_legal_value_beside_them():
    assert list(SPACE.one_at_a_time(PROBLEM)) == [{"chunk": 16, "fast": True}, {"chunk": 16, "fast": False}]
    chunks = [config["chunk"] for config in SPACE.one_at_a_time(PROBLEM.replace(length=64))]
    assert chunks == [16, 32, 64, 16]


def test_missing_tunables_take_their_defaults():
    assert SPACE.complete({"fast": False}, PROBLEM, "mine") == {"chunk": 16, "fast": False}


def test_a_former_name_stands_for_the_tunable():
    space = Space(SPACE.tunables, renamed={"block": "chunk"})
    assert space.complete({"block": 32}, PROBLEM, "mine") == {"chunk": 32, "fast": True}


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"chunk": 48}, r"mine: chunk=48: must be one of \(16, 32, 64\); see `scanlab list mine`"),
        ({"chunks": 16}, "no tunable 'chunks': it takes chunk, fast"),
        ({"fast": 1}, "fast=1: must be one of"),
        ({"chunk": 32}, "not legal for batch=1,.*: chunk 32 is longer than the sequence"),
    ],
)
def test_an_illegal_configuration_raises_and_is_never_clamped(config, complaint):
    with pytest.raises(ConfigError, match=complaint):
        SPACE.complete(config, PROBLEM, "mine")


def test_a_space_is_refused_when_it_contradicts_itself():
    with pytest.raises(ConfigError, match="default 8 is not one of its values"):
        Tunable("chunk", (16,), default=8)
    with pytest.raises(ConfigError, match="repeat"):
        Tunable("chunk", (16, 16), default=16)
    with pytest.raises(ConfigError, match="repeat a name"):
        Space((Tunable("a", (1,), 1), Tunable("a", (2,), 2)))


def test_one_spelling_for_one_configuration():
    assert config_key({"b": 1, "a": True}) == config_key({"a": True, "b": 1}) == '{"a":true,"b":1}'
