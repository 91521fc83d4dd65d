"""An op of a third party: found by its entry point, verified on its corners, and refused where it is wrong."""

from __future__ import annotations

import dataclasses
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

import scanlab
from scanlab.contract import registry
from scanlab.contract.verify import reference_outputs, verify

EXAMPLE = Path(__file__).parents[2] / "examples" / "moving_average"


@pytest.fixture
def moving_average(monkeypatch):
    """The example as if it were installed beside what is."""
    monkeypatch.syspath_prepend(EXAMPLE)
    installed = registry.entry_points
    targets = {registry.OPS: {"moving_average": "op"}}
    targets[registry.BACKENDS] = {name: name for name in ("moving_windows", "moving_pool")}

    def entry_points(group):
        added = [EntryPoint(name, f"moving_average:{what}", group) for name, what in targets[group].items()]
        return [*installed(group=group), *added]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    registry.clear()
    import moving_average as module

    yield module
    monkeypatch.undo()
    registry.clear()


def test_its_backends_agree_with_its_reference_on_every_corner(moving_average):
    backends, failures = registry.load_all("moving_average")
    assert not failures
    assert [backend.name for backend in backends] == ["moving_windows", "moving_pool"]
    for problem in registry.op("moving_average").corners:
        expected = reference_outputs(problem, moving_average.make_inputs(problem))
        assert ("grad_x" in expected.tensors) == problem.gradients
        for backend in backends:
            for config in backend.space.configs(problem):
                verdict = verify(backend.build(problem, config), expected)
                assert verdict.passed, verdict.reason


def test_it_is_served_by_the_choice_for_its_problem(moving_average):
    problem = moving_average.AverageProblem.parse("rows=4,length=16,width=2")
    (inputs,) = moving_average.make_inputs(problem)
    served = scanlab.serve(problem, inputs).out
    assert torch.allclose(served, moving_average.windows(problem)(inputs).out)
    assert problem.key in scanlab.explain()


def test_a_wrong_backend_fails(moving_average):
    problem = moving_average.CORNERS[1]
    wider = dataclasses.replace(problem, width=9)
    verdict = verify(moving_average.windows(wider), reference_outputs(problem, moving_average.make_inputs(problem)))
    assert not verdict.passed
    assert "out is off by" in verdict.reason


def test_its_problems_have_a_text_form_a_family_and_distances(moving_average):
    problem = moving_average.AverageProblem.parse("rows=4,length=16,width=2")
    assert problem.key == "rows=4,length=16,width=2"
    assert problem.family == problem.replace(rows=9).family != problem.replace(dtype="float64").family
    assert problem.distance(problem.replace(rows=8)) == problem.distance(problem.replace(rows=2))


def test_backends_of_another_op_are_not_among_those_of_the_scan(moving_average):
    assert not {backend.op for backend in registry.load_all("selective_scan")[0]} - {"selective_scan"}
