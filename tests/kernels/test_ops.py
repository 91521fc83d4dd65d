"""The ops around the scan: what their corners cover, and that a problem is what its inputs pose."""

from __future__ import annotations

from typing import Any

import pytest

from scanlab.contract import registry

OPS = ("linear", "causal_conv1d", "add_norm", "mamba_front", "state_update")
# What the tensors do not say.
OPTIONS = {
    "causal_conv1d": ("silu",),
    "add_norm": ("kind", "residual_in_fp32"),
    "state_update": ("dt_softplus", "log_A"),
}


@pytest.mark.parametrize("op", OPS)
def test_the_simplest_backend_takes_every_corner_and_another_one_runs_here(op: str) -> None:
    here = [backend for backend in registry.load_all(op)[0] if backend.unavailable() is None]
    assert [here[0].rejects(problem) for problem in registry.op(op).corners] == [None] * len(registry.op(op).corners)
    assert len(here) > 1


@pytest.mark.parametrize("op", OPS)
def test_a_problem_has_a_text_form_and_is_what_its_inputs_pose(op: str) -> None:
    value = registry.op(op)
    pose: Any = value.problem
    for problem in value.corners:
        assert value.problem.parse(problem.key) == problem
        options = {name: getattr(problem, name) for name in OPTIONS.get(op, ())}
        assert pose.of(*value.make_inputs(problem, 0), gradients=problem.gradients, **options) == problem
        assert value.work(problem).traffic_bytes > 0
        assert problem.family.family == problem.family
