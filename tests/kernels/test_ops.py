"""Every backend of the ops around the scan on the corners of its op: it agrees with the float64 reference or refuses."""

from __future__ import annotations

import pytest

from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.contract.problem import Problem
from scanlab.contract.space import config_key
from scanlab.contract.verify import reference_outputs, verify

OPS = ("linear",)


def backends() -> list[Backend]:
    found = [backend for op in OPS for backend in registry.load_all(op)[0]]
    return [backend for backend in found if "cpu" in backend.capabilities.devices]


def verdict_of(backend: Backend, problem: Problem, config: dict[str, object]) -> str | None:
    expected = reference_outputs(problem, registry.op(backend.op).make_inputs(problem, 0))
    return verify(backend.build(problem, config), expected).reason


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_a_backend_by_torch_that_takes_every_corner_and_one_more(op: str) -> None:
    here = [backend for backend in registry.load_all(op)[0] if backend.unavailable() is None]
    simplest = here[0]
    assert simplest.name.endswith(("_torch", "_composed"))
    assert len(here) > 1
    assert [simplest.rejects(problem) for problem in registry.op(op).corners] == [None] * len(registry.op(op).corners)


@pytest.mark.parametrize("backend", backends(), ids=lambda backend: backend.name)
def test_a_backend_agrees_with_the_reference_or_refuses_with_a_reason(backend: Backend) -> None:
    if backend.unavailable() is not None:
        pytest.skip(f"{backend.name} cannot run here: {backend.unavailable()}")
    op = registry.op(backend.op)
    served = [problem for problem in (*op.corners, *op.probes) if backend.rejects(problem) is None]
    assert served
    faults = {problem.key: verdict_of(backend, problem, {}) for problem in served}
    assert {key: fault for key, fault in faults.items() if fault is not None} == {}


@pytest.mark.parametrize("backend", backends(), ids=lambda backend: backend.name)
def test_every_value_of_every_tunable_agrees(backend: Backend) -> None:
    if backend.unavailable() is not None:
        pytest.skip(f"{backend.name} cannot run here: {backend.unavailable()}")
    problem = next(each for each in registry.op(backend.op).probes if backend.rejects(each) is None)
    for config in backend.space.in_turn(problem):
        assert verdict_of(backend, problem, config) is None, config_key(config)


@pytest.mark.parametrize("op", OPS)
def test_problems_have_a_text_form_and_are_what_their_inputs_pose(op: str) -> None:
    value = registry.op(op)
    assert all(corner.op == op for corner in value.corners)
    for problem in value.corners:
        assert value.problem.parse(problem.key) == problem
        assert value.problem.of(*value.make_inputs(problem, 0), gradients=problem.gradients) == problem
        assert value.work(problem).traffic_bytes > 0
