"""The tunable that decides the time is the important one, and too few configurations say nothing."""

from __future__ import annotations

import pytest

from helpers.records import block, measurement, trial
from scanlab.tuning.importance import MIN_CONFIGURATIONS, importances

CONFIGS = [{"chunk": chunk, "threads": threads} for chunk in (16, 32, 64) for threads in (1, 2, 4)]


def timed(config, time_ns, **changes):
    samples = measurement(*[block([time_ns] * 3, [1000] * 3)] * 6)
    return trial(config=config, measurement=samples, **changes)


def searched(**changes):
    return [timed(config, 100 * config["chunk"] + config["threads"], **changes) for config in CONFIGS]


def test_the_tunable_that_decides_the_time_is_the_important_one():
    shares = importances(searched())["chunked"]
    assert list(shares) == ["chunk", "threads"]
    assert shares["chunk"] > 0.9
    assert sum(shares.values()) == pytest.approx(1.0)


def test_the_largest_search_of_a_backend_counts():
    other = trial().problem.replace(length=99)
    small = [timed(config, 100 * config["threads"], problem=other) for config in CONFIGS[:7]]
    assert importances([*small, *searched()]) == importances(searched())


@pytest.mark.parametrize(
    "trials",
    [
        [],
        searched()[: MIN_CONFIGURATIONS - 1],
        [timed({"threads": number}, 100 + number) for number in range(9)],
        searched(phase="comparison"),
        [timed({}, 100)],
    ],
)
def test_what_says_nothing_is_left_out(trials):
    assert importances(trials) == {}
