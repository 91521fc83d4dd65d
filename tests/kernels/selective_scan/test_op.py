"""The op selective_scan: its reference, and what its corners cover."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.contract.verify import reference_outputs, relative_error
from scanlab_kernels.selective_scan.op import op

SMALL = ScanProblem(batch=1, dim=8, length=6, state=2)
PROBLEM = ScanProblem(batch=2, dim=6, length=13, state=5, gradients=True)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    "options",
    [{}, {"complex_A": True, "has_initial_state": True}, {"groups": 2, "constant_C": True}, {"has_z": False}],
    ids=str,
)
def test_the_reference_in_pieces_agrees_with_the_whole_loop(direction, options, monkeypatch):
    problem = PROBLEM.replace(dtype="float64", gradients=False, direction=direction, **options)
    inputs = make_inputs(problem)
    monkeypatch.setattr("scanlab_kernels.selective_scan.op.PIECE", 5)
    pieces = reference_outputs(problem, inputs).tensors
    whole = registry.get("reference").build(problem, {"threads": 1})(*inputs)
    # Vectors end elsewhere, and what is left over at their end is rounded by another function.
    assert all(relative_error(pieces[name], tensor) < 1e-15 for name, tensor in whole._asdict().items())


def test_every_option_has_a_corner_with_gradients_and_one_without():
    corners: Any = op.corners
    for name in ("has_D", "has_z", "has_delta_bias", "delta_softplus"):
        alone = [corner for corner in corners if not getattr(corner, name) and corner.direction == "forward"]
        assert {corner.gradients for corner in alone} == {False, True}


def test_corners_reach_beyond_the_blocks_that_a_configuration_names():
    corners: Any = op.corners_of({"channel_tile": 1536, "exp": "exact", "threads": 0})
    assert max(corner.dim for corner in corners) == max(corner.length for corner in corners) == 1537
    assert {corner.gradients for corner in corners} == {False, True}
    assert op.corners_of({"chunk": 8}) == ()
    probes: Any = op.probes
    assert max(probe.dim for probe in probes) > 64


def test_the_problem_names_its_op():
    assert registry.op(ScanProblem.op) is op
    assert hash(op) == hash(registry.op("selective_scan"))
    assert op.work(PROBLEM).multiply_adds == 4 * PROBLEM.state_updates


@pytest.mark.parametrize(
    "problem", [SMALL, SMALL.replace(groups=2, layout="dim_last", has_initial_state=True)], ids=str
)
def test_fresh_inputs_pose_the_same_problem_with_the_channels_in_another_order(problem):
    (inputs,) = make_inputs(problem)
    (fresh,) = op.fresh_inputs(problem, (inputs,), 1)
    scan = registry.get("reference").build(problem, {"threads": 1})
    old, new = scan(inputs).out, scan(fresh).out
    assert not torch.equal(old, new)
    assert fresh.u.stride() == inputs.u.stride()
    for group in range(problem.groups):
        channels = slice(group * 8 // problem.groups, (group + 1) * 8 // problem.groups)
        # Every channel is somewhere in its group, with everything that belongs to it.
        torch.testing.assert_close(old[:, channels].sort(dim=1).values, new[:, channels].sort(dim=1).values)
