"""GPU kernels in the interpreter: tunables of the backward pass, extremes, and the rules of torch for ops."""

from __future__ import annotations

import pytest
import torch

from scanlab.contract.problem import ScanInputs, ScanProblem, make_inputs
from scanlab.contract.space import config_key
from scanlab.contract.verify import reference_outputs, relative_error, verify
from scanlab_kernels.selective_scan.triton import backend as triton
from scanlab_kernels.selective_scan.triton import launch
from scanlab_kernels.selective_scan.triton.launch import Tuning

SMALL = ScanProblem(batch=2, dim=5, length=11, state=3, gradients=True)


@pytest.mark.parametrize(
    "config",
    [
        {"chunk": 2, "history": 2, "unroll": 2},
        {"chunk": 8, "history": 4, "backward_lanes": 16, "backward_channels": 8},
        {"chunk": 4, "history": 1, "backward_lanes": 4, "backward_channels": 1},
        {"chunk": 4, "segments": 2, "backward_lanes": 32, "backward_channels": 2, "order": "batch"},
        {"chunk": 2, "history": 2, "unroll": 2, "backward_segments": 2},
        {"chunk": 2, "history": 1, "unroll": 1, "backward_segments": 64, "order": "batch", "lanes": 8},
    ],
    ids=config_key,
)
def test_every_backward_pass_agrees(config):
    problem = SMALL.replace(direction="bidirectional", has_initial_state=True, batch=1, length=5)
    verdict = verify(triton.backend.build(problem, config), reference_outputs(problem, make_inputs(problem)))
    assert verdict.passed, verdict.reason


def test_groups_wider_than_a_block_in_both_directions():
    problem = SMALL.replace(batch=1, dim=10, groups=2, length=2, direction="bidirectional")
    config = {"lanes": 8, "unroll": 1, "chunk": 2, "backward_lanes": 4, "backward_channels": 1, "history": 1}
    verdict = verify(triton.backend.build(problem, config), reference_outputs(problem, make_inputs(problem)))
    assert verdict.passed, verdict.reason


def test_gradients_are_the_same_bits_every_time():
    problem = SMALL.replace(batch=1, dim=8, length=2)
    config = {"backward_lanes": 4, "backward_channels": 1, "unroll": 2, "chunk": 2}
    inputs = tuple(tensor.requires_grad_() for tensor in make_inputs(problem)[0].tensors().values())
    run = triton.backend.build(problem, config)
    one, other = (torch.autograd.grad(run(ScanInputs(*inputs)).out.sum(), inputs) for _ in range(2))
    assert all(map(torch.equal, one, other))


SPLIT = {"chunk": 2, "unroll": 2, "history": 1, "segments": 4, "backward_segments": 4}


@pytest.mark.parametrize(
    "asked",
    [
        {"has_z": False, "has_D": False, "delta_softplus": False, "has_delta_bias": False},
        {"groups": 2, "direction": "reverse", "layout": "dim_last", "dim": 4},
        {"direction": "bidirectional", "has_initial_state": True, "dim": 2},
    ],
    ids=str,
)
def test_the_backward_pass_in_segments_agrees_with_the_reference_and_with_itself_in_one_piece(asked):
    problem = SMALL.replace(batch=1, length=5).replace(**asked)
    given = make_inputs(problem)
    verdict = verify(triton.backend.build(problem, SPLIT), reference_outputs(problem, given))
    assert verdict.passed, verdict.reason
    leaves = [tensor.requires_grad_() for each in given for tensor in each.tensors().values()]

    def gradients(config):
        out, last = triton.backend.build(problem, config)(*given)
        return torch.autograd.grad(out.float().square().sum() + last.square().sum(), leaves)

    split, again, whole = gradients(SPLIT), gradients(SPLIT), gradients(SPLIT | {"backward_segments": 1})
    assert all(map(torch.equal, split, again))
    assert all(relative_error(one, other) < 2e-6 for one, other in zip(split, whole, strict=True))


@pytest.mark.parametrize("asked", [{"length": 65, "dim": 2, "state": 1}, {"length": 3, "dim": 65, "state": 1}], ids=str)
def test_a_scan_in_more_segments_than_there_are_steps_or_in_fewer(asked):
    problem = ScanProblem(batch=1, direction="reverse", **asked)
    verdict = verify(triton.backend.build(problem, {"segments": 64}), reference_outputs(problem, make_inputs(problem)))
    assert verdict.passed, verdict.reason


def test_each_segment_of_the_backward_pass_has_a_program_of_its_own_and_none_is_empty():
    problem = SMALL.replace(batch=1, length=9)
    tuning = Tuning(*triton.tuning_of(triton.backend.space.defaults | SPLIT | {"backward_segments": 64}, problem))
    scan = launch.Scan(make_inputs(problem), True, False, tuning, row=problem.state)
    _, outputs = launch.forward_tensors(scan, keep=True)
    assert [each.programs for each in launch.backward_launches(scan)] == [5, 5]  # of two steps, and the last of one
    _, gradients = launch.backward_tensors(scan, outputs.checkpoints, outputs.out, None)
    assert gradients[0].A.shape[0] == 5
    scan = scan._replace(tuning=tuning._replace(backward_segments=1))
    (whole,) = launch.backward_launches(scan)
    (tensors,), _ = launch.backward_tensors(scan, outputs.checkpoints, outputs.out, None)
    assert (whole.programs, tensors["ends"]) == (1, None)


def lying(inputs: ScanInputs, how: str) -> ScanInputs:
    """Return the same values with B and C elsewhere in memory."""
    if how == "at once":
        return inputs
    width = {"slices": 12, "odd slices": 11}[how]
    state = inputs.B.shape[1]
    rows = torch.cat((torch.zeros(*inputs.B.mT.shape[:2], width), inputs.B.mT, inputs.C.mT), 2)
    return inputs._replace(B=rows[..., width : width + state].mT, C=rows[..., width + state :].mT)


@pytest.mark.parametrize("how", ["slices", "odd slices"])
def test_projections_are_read_where_they_lie(how):
    problem = SMALL.replace(state=4, direction="bidirectional", dim=2, length=3)
    given = make_inputs(problem)
    leaves = [tensor.requires_grad_() for each in given for tensor in each.tensors().values()]
    run = triton.backend.build(problem, SPLIT)

    def results(how):
        out, last = run(*(lying(each, how) for each in given))
        return out, last, *torch.autograd.grad(out.sum(), leaves)

    assert all(map(torch.equal, results(how), results("at once")))


def test_calls_of_one_kind_compute_with_their_own_tensors_and_others_are_told_apart():
    problem = SMALL.replace(gradients=False, direction="bidirectional", layout="dim_last", dim=2, length=3)
    run = triton.backend.build(problem, {"unroll": 2})
    for seed in range(2):
        given = make_inputs(problem, seed)
        transposed = tuple(
            each._replace(A=each.A.T.contiguous().T, z=each.z.contiguous(), u=each.u.contiguous()) for each in given
        )
        truth = reference_outputs(problem, given).tensors["out"]
        for inputs in (given, transposed, (given[0], transposed[1])):
            assert relative_error(run(*inputs).out, truth) < 2e-6


@pytest.mark.parametrize(("ins", "outs"), [(slice(6, 8), slice(6, 8)), (slice(6, 8), slice(0, 4))])
def test_a_state_of_zero_passes_a_segment_whose_decays_overflow(ins, outs):
    problem = ScanProblem(batch=1, dim=2, length=8, state=2, delta_softplus=False, has_delta_bias=False)
    inputs = make_inputs(problem)[0]
    B, C = torch.zeros_like(inputs.B), torch.zeros_like(inputs.C)
    B[..., ins], C[..., outs] = 1.0, 1.0
    sizes = torch.tensor([1.0, 1, 1, 1, 60, 60, 1, 1]).expand_as(inputs.delta)
    given = inputs._replace(delta=sizes, A=torch.ones_like(inputs.A), B=B.requires_grad_(), C=C)
    backward = outs.stop < ins.start  # the state is zero where it grows, or else its gradient is not

    def results(config):
        out = triton.backend.build(problem.replace(gradients=True), config)(given).out
        return (out, *torch.autograd.grad(out.sum(), B)) if backward else (out,)

    for one, other in zip(results(SPLIT), results(SPLIT | {"segments": 1, "backward_segments": 1}), strict=True):
        assert other.isfinite().all()
        torch.testing.assert_close(one, other)


def test_softplus_and_gate_where_they_saturate():
    problem = ScanProblem(batch=1, dim=3, length=12, state=2, has_delta_bias=False)
    inputs = make_inputs(problem)[0]
    values = torch.tensor([-1e4, -150.0, -80.0, -20.0, -1e-3, 0.0, 1e-3, 19.9, 20.1, 80.0, 150.0, 1e4])
    inputs = inputs._replace(delta=values.expand_as(inputs.u), z=values.flip(0).expand_as(inputs.u))
    truth = reference_outputs(problem, (inputs,)).tensors["out"]
    for got, want in zip(triton.backend.build(problem)(inputs).out.unbind(-1), truth.unbind(-1), strict=True):
        assert float((got - want).abs().max()) <= 2e-6 * float(want.abs().max()) + 1e-25


@pytest.mark.parametrize("polynomial", [0, 2])
@pytest.mark.parametrize(("size", "rate"), [(1.0, -80.0), (30.0, -1e4), (1.0, 3.0), (1e-30, -1.0), (2.0, 0.0)])
def test_extreme_decays_follow_the_formula(polynomial, size, rate):
    problem = ScanProblem(batch=1, dim=3, length=4, state=2, delta_softplus=False, has_delta_bias=False)
    inputs = make_inputs(problem)[0]
    inputs = inputs._replace(delta=torch.full_like(inputs.delta, size), A=torch.full_like(inputs.A, rate))
    out = triton.backend.build(problem, {"polynomial": polynomial})(inputs).out
    assert relative_error(out, reference_outputs(problem, (inputs,)).tensors["out"]) < 3e-6


def test_nan_stays_in_its_channel():
    problem = ScanProblem(batch=1, dim=4, length=5, state=2)
    inputs = make_inputs(problem)[0]
    inputs.delta[0, 2, 3] = float("nan")
    for polynomial in (0, 2):
        out = triton.backend.build(problem, {"polynomial": polynomial})(inputs).out
        assert out[0, 2, 3:].isnan().all()
        assert out.isnan().sum() == 2


def arguments(problem: ScanProblem) -> tuple[object, ...]:
    """Return the arguments of the ops for a problem."""
    inputs = make_inputs(problem)
    if problem.gradients:
        inputs = tuple(
            each.with_tensors(**{name: t.requires_grad_() for name, t in each.tensors().items()}) for each in inputs
        )
    reverse = inputs[1] if len(inputs) == 2 else (None,) * len(ScanInputs._fields)
    tuning = triton.tuning_of(triton.backend.space.defaults | {"unroll": 2, "chunk": 2}, problem)
    return (*inputs[0], *reverse, problem.delta_softplus, problem.direction == "reverse", tuning)


@pytest.mark.parametrize(
    "asked",
    [
        {"layout": "dim_last", "direction": "bidirectional", "has_initial_state": True},
        {"groups": 2, "direction": "reverse", "has_D": False, "has_z": False, "has_delta_bias": False},
    ],
    ids=str,
)
def test_the_ops_satisfy_torch(asked):
    problem = ScanProblem(batch=1, dim=4, length=2, state=2, gradients=True).replace(**asked)
    triton.backend.build(problem)
    torch.library.opcheck(torch.ops.scanlab.triton_scan_with_checkpoints.default, arguments(problem))
    if problem.directions == 1:
        torch.library.opcheck(torch.ops.scanlab.triton_scan.default, arguments(problem.replace(gradients=False)))


def test_compiles_into_one_graph():
    problem = ScanProblem(batch=1, dim=4, length=5, state=2, gradients=True, layout="dim_last")
    inputs = make_inputs(problem)[0]
    leaves = [tensor.requires_grad_() for tensor in inputs.tensors().values()]
    run = triton.backend.build(problem, {"unroll": 2, "chunk": 2})
    compiled = torch.compile(lambda each: tuple(run(each)), fullgraph=True, backend="aot_eager")
    got, want = compiled(inputs)[0], run(inputs).out
    assert torch.equal(got, want)
    pairs = zip(torch.autograd.grad(got.sum(), leaves), torch.autograd.grad(want.sum(), leaves), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_says_that_it_is_interpreted_and_serves_the_cpu_alone():
    assert "interpreted" in triton.backend.summary
    assert triton.backend.unavailable() is None
    assert triton.backend.rejects(SMALL.replace(device="cuda")) == "device cuda: it has cpu"
