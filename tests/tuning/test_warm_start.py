"""A search begins with the winners on similar problems, the nearest first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.fakes import sleepy
from helpers.records import block, measurement, trial
from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanProblem
from scanlab.tuning.warm_start import MAX_HINTS, winners_on_similar_problems

PROBLEM = ScanProblem(batch=1, dim=8, length=100, state=2)
BACKEND = sleepy()


def tried(length, delay_ms, time_ns=100, **changes):
    samples = measurement(*[block([time_ns] * 3, [1000] * 3)] * 6)
    fields = {
        "problem": PROBLEM.replace(length=length),
        "backend": BACKEND.name,
        "source_hash": BACKEND.source_hash,
        "config": {"delay_ms": delay_ms},
        "measurement": samples,
    }
    return trial(**(fields | changes))


def winners(*trials):
    found = winners_on_similar_problems(trials, BACKEND, PROBLEM, this_machine())
    return [config["delay_ms"] for config in found]


def test_the_fastest_on_each_similar_problem_is_tried_that_of_the_nearest_first():
    assert winners(tried(400, 4.0), tried(110, 1.0, 50), tried(110, 9.0, 80), tried(50, 2.0)) == [1.0, 2.0, 4.0]


def test_a_configuration_that_won_twice_is_tried_once_and_few_are_tried():
    assert winners(tried(110, 1.0), tried(120, 1.0), tried(130, 2.0)) == [1.0, 2.0]
    assert len(winners(*(tried(110 + step, float(step)) for step in range(9)))) == MAX_HINTS


@pytest.mark.parametrize(
    "changes",
    [
        {"problem": PROBLEM},
        {"problem": PROBLEM.replace(length=110, dtype="bfloat16")},
        {"backend": "another"},
        {"source_hash": "of another source"},
        {"machine": replace(this_machine(), silicon=replace(this_machine().silicon, usable_cpus=99))},
        {"phase": "comparison"},
        {"state": "pruned", "reason": "too slow"},
    ],
)
def test_what_says_nothing_about_this_search_is_left_out(changes):
    assert winners(tried(110, 1.0, **changes)) == []
