"""Shipped defaults: the most similar problem and machine, and the file itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from scanlab.contract import registry
from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanProblem
from scanlab.runtime import decisions, defaults
from scanlab.runtime.defaults import DefaultEntry, MeasuredProblem, most_similar, read

PROBLEM = ScanProblem(batch=1, dim=384, length=200)


def measured(problem: ScanProblem, **facts: Any) -> MeasuredProblem:
    silicon = this_machine().silicon
    here: dict[str, Any] = {"machine": "here", "instruction_set": silicon.instruction_set, "cpus": silicon.usable_cpus}
    entries = (DefaultEntry("two_phase", {}, 3.0), DefaultEntry("reference", {}, 1.0))
    return MeasuredProblem(problem=problem, source="results/x", entries=entries, **here | facts)


@pytest.mark.parametrize(
    ("near", "far"),
    [
        (measured(PROBLEM.replace(length=300)), measured(PROBLEM.replace(length=1000))),
        (measured(PROBLEM.replace(length=9000)), measured(PROBLEM.replace(gradients=True))),
        (measured(PROBLEM.replace(length=9000)), measured(PROBLEM, instruction_set="another")),
        (measured(PROBLEM, instruction_set="another"), measured(PROBLEM.replace(direction="reverse"))),
        (measured(PROBLEM), measured(PROBLEM, cpus=64 * this_machine().silicon.usable_cpus)),
    ],
    ids=["size", "gradients before size", "instructions before size", "direction before instructions", "CPUs"],
)
def test_the_most_similar_stands_first(near, far, monkeypatch):
    for order in ((near, far), (far, near)):
        monkeypatch.setattr(defaults, "read", lambda order=order: order)
        assert list(most_similar(PROBLEM)) == [near, far]


def test_what_was_measured_on_a_cpu_says_nothing_of_a_gpu():
    assert list(most_similar(PROBLEM))
    assert not list(most_similar(PROBLEM.replace(device="cuda")))


def test_a_configuration_that_is_not_legal_here_gives_way_to_the_defaults(monkeypatch):
    there = measured(PROBLEM)
    illegal = dataclasses.replace(there, entries=(DefaultEntry("two_phase", {"threads": 4096}, 3.0),))
    monkeypatch.setattr(decisions, "most_similar", lambda problem: iter([illegal]))
    decision = decisions.decide(PROBLEM, None)
    assert (decision.backend, decision.basis) == ("two_phase", "default")
    assert decision.config == registry.get("two_phase").space.defaults


def test_what_stands_first_and_cannot_serve_is_named_with_its_reason(monkeypatch):
    there = measured(PROBLEM)
    entries = (DefaultEntry("example", {}, 9.0), DefaultEntry("two_phase", {}, 3.0))
    registry_get = registry.get

    def get(name):
        if name != "example":
            return registry_get(name)
        return dataclasses.replace(registry_get("chunked"), name="example", unavailable=lambda: "there is no compiler")

    monkeypatch.setattr(registry, "get", get)
    monkeypatch.setattr(decisions, "most_similar", lambda problem: iter([dataclasses.replace(there, entries=entries)]))
    decision = decisions.decide(PROBLEM, None)
    assert decision.backend == "two_phase"
    assert decision.reason.endswith("; example: there is no compiler")


def test_what_ships_names_backends_that_are_installed_and_results_that_are_here():
    shipped = read()
    assert shipped
    for each in shipped:
        assert [one.speedup for one in each.entries] == sorted((one.speedup for one in each.entries), reverse=True)
        assert Path(__file__).parents[2].joinpath(each.source).is_dir()
        for entry in each.entries:
            backend = registry.get(entry.backend)
            assert backend.rejects(each.problem) is None
            assert backend.space.complete(entry.config, each.problem, backend.name)
