"""The functions of ssd_combined and ssd_minimal against compositions of plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.verify import relative_error
from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm.modules.ssd_minimal import segsum, segsum_unstable, ssd_minimal_discrete
from scanlab.integrations.mamba_ssm.ops.triton import ssd_combined
from scanlab_kernels.ssd import reference
from scanlab_kernels.ssd.problem import SsdInputs, SsdProblem, make_inputs

HEADS, HEAD_DIM, STATE, GROUPS, MLP = 4, 6, 5, 2, 3
DIM, PROJECTION = HEADS * HEAD_DIM, GROUPS * STATE
PROBLEM = SsdProblem(batch=2, length=23, heads=HEADS, head_dim=HEAD_DIM, state=STATE, groups=GROUPS)


def test_a_scan_takes_all_of_upstreams_arguments():
    problem = PROBLEM.replace(skip="channel", has_z=True, has_initial_state=True, has_seq_idx=True, dt_limit="0.05:0.2")
    (inputs,) = make_inputs(problem)
    out, states = ssd_combined.mamba_chunk_scan_combined(
        *inputs[:5],
        chunk_size=8,
        D=inputs.D,
        z=inputs.z,
        dt_bias=inputs.dt_bias,
        initial_states=inputs.initial_state,
        seq_idx=inputs.seq_idx,
        dt_softplus=True,
        dt_limit=(0.05, 0.2),
        return_final_states=True,
    )
    expected = reference.backend.build(problem)(inputs)
    torch.testing.assert_close(out, expected.out)
    torch.testing.assert_close(states, expected.final_state)


def test_mixtures_of_dtypes_are_promoted_and_the_output_has_that_of_x():
    (inputs,) = make_inputs(PROBLEM.replace(dtype="bfloat16"))
    mixed = inputs._replace(dt=inputs.dt.bfloat16(), A=inputs.A.half(), B=inputs.B.float(), D=inputs.D.double())
    out, states = ssd_combined.mamba_chunk_scan_combined(
        *mixed[:5], 8, mixed.D, dt_bias=mixed.dt_bias, dt_softplus=True, return_final_states=True
    )
    assert (out.dtype, states.dtype) == (torch.bfloat16, torch.float32)
    wide = SsdInputs(*(each if each is None else each.double() for each in mixed))
    expected = reference.backend.build(PROBLEM.replace(dtype="float64"))(wide)
    assert relative_error(out, expected.out) < 2**-8
    assert relative_error(states, expected.final_state) < 1e-5


def test_the_states_after_each_of_several_sequences_are_those_of_each_alone():
    (inputs,) = make_inputs(PROBLEM.replace(batch=1))
    ends = torch.tensor([0, 5, 6, 23])
    seq_idx = torch.repeat_interleave(torch.arange(3), ends.diff())[None].int()
    out, _, states = ssd_combined.mamba_chunk_scan_combined(
        *inputs[:5],
        8,
        inputs.D,
        dt_bias=inputs.dt_bias,
        dt_softplus=True,
        seq_idx=seq_idx,
        cu_seqlens=ends,
        return_final_states=True,
        return_varlen_states=True,
    )
    assert states.shape == (3, HEADS, HEAD_DIM, STATE)
    for index in range(3):
        begin, end = ends[index], ends[index + 1]
        x, dt, B, C = (each[:, begin:end] for each in (inputs.x, inputs.dt, inputs.B, inputs.C))
        alone, state = ssd_combined.mamba_chunk_scan_combined(
            x, dt, inputs.A, B, C, 8, inputs.D, dt_bias=inputs.dt_bias, dt_softplus=True, return_final_states=True
        )
        torch.testing.assert_close(out[:, begin:end], alone)
        torch.testing.assert_close(states[index], state[0])
    with pytest.raises(ProblemError, match="pass cu_seqlens"):
        ssd_combined.mamba_chunk_scan_combined(*inputs[:5], 8, return_varlen_states=True)
    with pytest.raises(ProblemError, match="must rise from 0"):
        ssd_combined.mamba_chunk_scan_combined(*inputs[:5], 8, cu_seqlens=ends + 1, return_varlen_states=True)


def loop_over_channels(inputs: SsdInputs, dt_softplus: bool, dt_limit: tuple[float, float]) -> Tensor:
    """The scan whose dt (batch, length, heads, head_dim) and A (heads, head_dim, state) differ within a head."""
    x, dt, A, B, C, D, z, dt_bias, *_ = inputs
    step = dt + dt_bias
    step = (F.softplus(step) if dt_softplus else step).clamp(*dt_limit)[..., None]
    B, C = (each.repeat_interleave(HEADS // GROUPS, dim=2)[:, :, :, None] for each in (B, C))
    h, ys = torch.zeros_like(A), []
    for t in range(x.shape[1]):
        h = torch.exp(step[:, t] * A) * h + step[:, t] * x[:, t, ..., None] * B[:, t]
        ys.append((h * C[:, t]).sum(-1))
    return (torch.stack(ys, 1) + D * x) * F.silu(z)


@pytest.mark.parametrize("dt_limit", [(0.0, float("inf")), (0.4, 0.9)])
@pytest.mark.parametrize("own", ["dt", "A", "D", "dt_bias", "all"])
def test_a_selective_scan_has_step_sizes_rates_and_biases_of_channels(own, dt_limit):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def of_heads(name: str, *before: int) -> Tensor:
        return normal(*before, HEADS, HEAD_DIM if own in (name, "all") else 1)

    x, z = normal(2, 2, 9, HEADS, HEAD_DIM)
    B, C = normal(2, 2, 9, GROUPS, STATE)
    dt, D, dt_bias = of_heads("dt", 2, 9), of_heads("D"), of_heads("dt_bias")
    A = -normal(HEADS, HEAD_DIM, STATE).exp() if own in ("A", "all") else -normal(HEADS, 1, 1).exp()
    tensors = [each.requires_grad_() for each in (x, dt, A, B, C, D, z, dt_bias)]
    whole_A = A.expand(HEADS, HEAD_DIM, STATE)
    expected = loop_over_channels(SsdInputs(x, dt, whole_A, B, C, D, z, dt_bias), True, dt_limit)
    given_A = A.flatten(0, 1) if own in ("A", "all") else A.flatten()
    given_dt, given_D, given_bias = (each.squeeze(-1) for each in (dt, D, dt_bias))
    out = ssd_combined.ssd_selective_scan(x, given_dt, given_A, B, C, given_D, z, given_bias, True, dt_limit)
    torch.testing.assert_close(out, expected)
    truths = torch.autograd.grad(expected.square().sum(), tensors)
    for found, truth in zip(torch.autograd.grad(out.square().sum(), tensors), truths, strict=True):
        assert relative_error(found, truth) < 1e-12


def test_a_selective_scan_refuses_what_does_not_fit():
    (inputs,) = make_inputs(PROBLEM)
    dt = inputs.dt[..., None].expand(inputs.x.shape)
    assert ssd_combined.ssd_selective_scan(inputs.x.bfloat16(), dt, *inputs[2:5]).dtype == torch.bfloat16
    with pytest.raises(ProblemError, match="dt is"):
        ssd_combined.ssd_selective_scan(inputs.x, dt[..., :-1], *inputs[2:5])
    with pytest.raises(ProblemError, match="A is"):
        ssd_combined.ssd_selective_scan(inputs.x, dt, torch.ones(DIM, STATE + 1), *inputs[3:5])


def layer(**changes: Tensor | None) -> dict[str, Any]:
    """The tensors of a Mamba-2 layer."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    convolved = DIM + 2 * PROJECTION
    return {
        "zxbcdt": normal(2, 23, 2 * MLP + DIM + convolved + HEADS),
        "conv1d_weight": normal(convolved, 4),
        "conv1d_bias": normal(convolved),
        "dt_bias": normal(HEADS),
        "A": -normal(HEADS).exp(),
        "D": normal(HEADS, HEAD_DIM),
        "rmsnorm_weight": normal(DIM),
        "outproj_weight": normal(9, MLP + DIM),
        "outproj_bias": normal(9),
    } | changes


def composed(tensors: dict[str, Any], norm_before_gate: bool) -> tuple[Tensor, Tensor]:
    """A Mamba-2 layer as the paper draws it, one operation after another."""
    mlp_gate, mlp_input, z, xBC, dt = tensors["zxbcdt"].split([MLP, MLP, DIM, DIM + 2 * PROJECTION, HEADS], dim=-1)
    weight, bias = tensors["conv1d_weight"], tensors["conv1d_bias"]
    xBC = F.silu(F.conv1d(F.pad(xBC.mT, (3, 0)), weight[:, None], bias, groups=len(weight))).mT
    x, B, C = xBC.split([DIM, PROJECTION, PROJECTION], dim=-1)
    inputs = SsdInputs(
        x.unflatten(-1, (HEADS, HEAD_DIM)),
        dt,
        tensors["A"],
        B.unflatten(-1, (GROUPS, STATE)),
        C.unflatten(-1, (GROUPS, STATE)),
        tensors["D"],
        None,
        tensors["dt_bias"],
    )
    problem = SsdProblem.of(inputs, dt_softplus=True, dt_limit=(0.1, 0.9))
    y, states = reference.backend.build(problem)(inputs)
    y = y.flatten(2)

    def norm(values: Tensor) -> Tensor:
        groups = values.unflatten(-1, (GROUPS, -1))
        return F.rms_norm(groups, groups.shape[-1:], eps=1e-5).flatten(-2) * tensors["rmsnorm_weight"]

    if tensors["rmsnorm_weight"] is None:
        y = y * F.silu(z)
    else:
        y = norm(y) * F.silu(z) if norm_before_gate else norm(y * F.silu(z))
    y = torch.cat((F.silu(mlp_gate) * mlp_input, y), dim=-1)
    return y @ tensors["outproj_weight"].T + tensors["outproj_bias"], states


@pytest.mark.parametrize(
    ("changes", "norm_before_gate"), [({}, True), ({}, False), ({"rmsnorm_weight": None}, False)], ids=str
)
def test_a_whole_layer_is_the_composition_of_its_parts_with_its_gradients(changes, norm_before_gate):
    tensors = layer(**changes)
    leaves = [each.requires_grad_() for each in tensors.values() if each is not None]
    expected, expected_states = composed(tensors, norm_before_gate)
    out, states = ssd_combined.mamba_split_conv1d_scan_combined(
        **tensors,
        chunk_size=8,
        dt_limit=(0.1, 0.9),
        return_final_states=True,
        rmsnorm_eps=1e-5,
        ngroups=GROUPS,
        norm_before_gate=norm_before_gate,
    )
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(states, expected_states)
    truths = torch.autograd.grad(expected.square().sum(), leaves)
    for found, truth in zip(torch.autograd.grad(out.square().sum(), leaves), truths, strict=True):
        assert relative_error(found, truth) < 1e-12


def test_a_head_without_a_width_is_refused():
    with pytest.raises(ProblemError, match="headdim is None and D has one axis"):
        ssd_combined.mamba_split_conv1d_scan_combined(**layer(D=torch.ones(HEADS)), chunk_size=8)


def test_sums_of_segments():
    x = torch.randn(2, 7, dtype=torch.float64)
    sums = segsum(x)
    assert sums[1, 5, 2] == pytest.approx(x[1, 3:6].sum().item())
    assert sums[0, 2, 5] == -torch.inf
    torch.testing.assert_close(sums, segsum_unstable(x))


@pytest.mark.parametrize("groups", [1, 2, HEADS])
def test_the_minimal_function_is_the_scan_of_discretised_inputs(groups):
    problem = PROBLEM.replace(length=24, groups=groups, skip="none", dtype="float64")
    (inputs,) = make_inputs(problem)
    dt = F.softplus(inputs.dt + inputs.dt_bias)
    X, A = inputs.x * dt[..., None], inputs.A * dt
    out, last_state = ssd_minimal_discrete(X, A, inputs.B, inputs.C, 8)
    expected = reference.backend.build(problem)(inputs)
    torch.testing.assert_close(out, expected.out)
    torch.testing.assert_close(last_state, expected.final_state)
    _, h = ssd_minimal_discrete(X[:, :16], A[:, :16], inputs.B[:, :16], inputs.C[:, :16], 8)
    rest, _ = ssd_minimal_discrete(X[:, 16:], A[:, 16:], inputs.B[:, 16:], inputs.C[:, 16:], 8, h[:, None])
    torch.testing.assert_close(rest, expected.out[:, 16:])
    nothing, same = ssd_minimal_discrete(X[:, :0], A[:, :0], inputs.B[:, :0], inputs.C[:, :0], 8, h[:, None])
    assert nothing.shape == (2, 0, HEADS, HEAD_DIM)
    assert torch.equal(same, h)


def test_the_minimal_function_refuses_what_does_not_fit():
    (inputs,) = make_inputs(PROBLEM.replace(length=24, groups=1, dtype="float64"))
    X, A = inputs.x, inputs.dt
    with pytest.raises(ProblemError, match="block_len=7 does not divide"):
        ssd_minimal_discrete(X, A, inputs.B, inputs.C, 7)
    with pytest.raises(ProblemError, match="A is \\(1, 24, 4\\): must be \\(2, 24, 4\\)"):
        ssd_minimal_discrete(X, A[:1], inputs.B, inputs.C, 8)
    with pytest.raises(ProblemError, match="C is on meta"):
        ssd_minimal_discrete(X, A, inputs.B, inputs.C.to("meta"), 8)
    with pytest.raises(ProblemError, match="block_len=0 does not divide"):
        ssd_minimal_discrete(X, A, inputs.B, inputs.C, 0)
    with pytest.raises(ProblemError, match="3 groups, which do not divide the 4 heads"):
        ssd_minimal_discrete(X, A, inputs.B.expand(-1, -1, 3, -1), inputs.C.expand(-1, -1, 3, -1), 8)
    with pytest.raises(ProblemError, match="must have one dtype"):
        ssd_minimal_discrete(X.float(), A, inputs.B, inputs.C, 8)


def test_a_projection_to_a_vector_is_refused() -> None:
    with pytest.raises(ProblemError, match="outproj_weight"):
        ssd_combined.mamba_split_conv1d_scan_combined(**layer(outproj_weight=torch.ones(HEADS)), chunk_size=8)
