"""The C++ kernel against the float64 oracle: every instruction set, layout, storage type and tile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scanlab import registry
from scanlab.errors import ConfigError, RejectedError
from scanlab.kernels import native
from scanlab.problem import ScanInputs, ScanOutput, ScanProblem, make_inputs
from scanlab.space import Config

ISAS = tuple(native.ISA_FLAGS)[: tuple(native.ISA_FLAGS).index(native.best_isa()) + 1]
TOLERANCES = {"float32": 1e-6, "float64": 1e-14, "bfloat16": 8e-3, "float16": 1e-3}


def oracle(problem: ScanProblem, inputs: tuple[ScanInputs, ...]) -> ScanOutput:
    """The reference loop in float64 on the same numbers."""

    def wide(tensor: Tensor) -> Tensor:
        return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)

    cast = (ScanInputs(**{name: wide(tensor) for name, tensor in each.tensors().items()}) for each in inputs)
    return registry.get("reference").build(problem.replace(dtype="float64"))(*cast)


def errors(got: ScanOutput, want: ScanOutput) -> list[float]:
    """The largest error of each tensor as a share of its largest value; NaN where one is NaN."""
    return [float((one - other).abs().max() / other.abs().max()) for one, other in zip(got, want, strict=True)]


def check(problem: ScanProblem, config: Config | None = None, seed: int = 0) -> None:
    """The kernel agrees with the oracle on the problem's own inputs, in dtypes and layout as well."""
    inputs = make_inputs(problem, seed)
    got, want = native.backend.build(problem, config)(*inputs), oracle(problem, inputs)
    out_error, state_error = errors(got, want)
    assert out_error <= TOLERANCES[problem.dtype] * problem.directions
    assert state_error <= max(TOLERANCES["float32"], TOLERANCES[problem.dtype]) if problem.dtype != "float64" else 1e-14
    assert got.out.dtype == inputs[0].u.dtype
    assert got.out.stride() == inputs[0].u.stride()
    assert got.last_state.dtype == inputs[0].A.dtype


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set of this machine, forced."""
    monkeypatch.setenv("SCANLAB_ISA", request.param)
    return str(request.param)


PROBLEMS = {
    "plain": {},
    "batch": {"batch": 3, "state": 5},
    "one step": {"length": 1},
    "one channel": {"dim": 1},
    "one state": {"state": 1},
    "odd states": {"state": 37},
    "most states": {"state": 256, "length": 20},
    "reverse": {"direction": "reverse"},
    "both directions": {"direction": "bidirectional"},
    "groups": {"dim": 60, "groups": 5},
    "constant B": {"constant_B": True},
    "constant C": {"constant_C": True, "groups": 2},
    "constant B and C": {"constant_B": True, "constant_C": True, "direction": "bidirectional"},
    "bare": {"has_D": False, "has_z": False, "has_delta_bias": False, "delta_softplus": False},
    "initial state": {"has_initial_state": True, "direction": "bidirectional", "batch": 2},
}


@pytest.mark.parametrize("layout", ["dim_last", "length_last"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("fields", PROBLEMS.values(), ids=PROBLEMS)
def test_agrees_with_the_oracle(isa: str, fields: dict[str, object], dtype: str, layout: str) -> None:
    sizes: dict[str, object] = {"batch": 1, "dim": 42, "length": 83}
    check(ScanProblem(**(sizes | fields), dtype=dtype, layout=layout))  # type: ignore[arg-type]


@pytest.mark.parametrize("time_block", [16, 32, 64, 128])
@pytest.mark.parametrize("channel_tile", [16, 32, 64, 128])
@pytest.mark.parametrize("exp", native.EXP_VARIANTS)
def test_every_tile_agrees_with_the_oracle(isa: str, time_block: int, channel_tile: int, exp: str) -> None:
    problem = ScanProblem(batch=1, dim=150, length=260, direction="bidirectional", layout="dim_last")
    check(problem, {"time_block": time_block, "channel_tile": channel_tile, "exp": exp}, seed=1)


def test_the_number_of_threads_changes_no_bit() -> None:
    problem = ScanProblem(batch=2, dim=200, length=70, direction="bidirectional")
    inputs = make_inputs(problem)
    results = [
        native.backend.build(problem, {"threads": count})(*inputs) for count in (1, native.threads_choice().default)
    ]
    assert torch.equal(results[0].out, results[1].out)
    assert torch.equal(results[0].last_state, results[1].last_state)


def test_strides_of_any_kind_are_read_where_they_lie() -> None:
    problem = ScanProblem(batch=2, dim=20, length=30)
    inputs = make_inputs(problem)[0]
    sparse = {name: torch.stack((tensor, tensor * 0), dim=-1)[..., 0] for name, tensor in inputs.tensors().items()}
    run = native.backend.build(problem)
    assert torch.equal(run(ScanInputs(**sparse)).out, run(inputs).out)


def with_delta(value: float, rate: float) -> tuple[ScanInputs, ScanProblem]:
    """A scan without softplus whose every decay is exp(value x rate)."""
    problem = ScanProblem(batch=1, dim=18, length=9, delta_softplus=False, has_delta_bias=False)
    inputs = make_inputs(problem)[0]
    return inputs._replace(delta=torch.full_like(inputs.delta, value), A=torch.full_like(inputs.A, rate)), problem


@pytest.mark.parametrize("exp", native.EXP_VARIANTS)
@pytest.mark.parametrize(
    ("value", "rate"),
    [(1.0, -80.0), (1.0, -90.0), (30.0, -1e4), (1e30, -1e30), (1.0, 3.0), (1e-30, -1.0), (2.0, 0.0), (1e-3, 1e-3)],
)
def test_extreme_decays_follow_the_formula(isa: str, exp: str, value: float, rate: float) -> None:
    inputs, problem = with_delta(value, rate)
    got = native.backend.build(problem, {"exp": exp})(inputs)
    assert errors(got, oracle(problem, (inputs,)))[0] < 3e-6


@pytest.mark.parametrize("exp", native.EXP_VARIANTS)
def test_overflow_is_infinite_and_nan_stays_in_its_channel(isa: str, exp: str) -> None:
    inputs, problem = with_delta(1.0, 40.0)
    inputs.delta[0, 3, 4] = float("nan")
    out = native.backend.build(problem, {"exp": exp})(inputs).out
    assert not out[0, :, 4:].isfinite().any()
    assert out[0, 3, 4:].isnan().all()
    assert out[0, :, :2].isfinite().all()
    inputs, problem = with_delta(1.0, -1.0)
    inputs.u[0, 5, 2] = float("inf")
    got, want = native.backend.build(problem, {"exp": exp})(inputs).out, oracle(problem, (inputs,)).out
    assert torch.equal(got.isfinite(), want.isfinite())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saturating_softplus_and_gate(isa: str, dtype: str) -> None:
    problem = ScanProblem(batch=1, dim=20, length=12, dtype=dtype, has_delta_bias=False)
    inputs = make_inputs(problem)[0]
    values = torch.tensor([-1e4, -150.0, -80.0, -20.0, -1e-3, 0.0, 1e-3, 19.9, 20.1, 80.0, 150.0, 1e4]).to(inputs.u)
    inputs = inputs._replace(delta=values.expand_as(inputs.u), z=values.flip(0).expand_as(inputs.u))
    got, want = native.backend.build(problem)(inputs), oracle(problem, (inputs,))
    for one, other in zip(got.out.unbind(-1), want.out.unbind(-1), strict=True):
        assert float((one - other).abs().max()) <= TOLERANCES[dtype] * float(other.abs().max()) + 1e-25


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANLAB_ISA", "mmx")
    with pytest.raises(ConfigError, match="SCANLAB_ISA='mmx'"):
        native.backend.build(ScanProblem(batch=1, dim=2, length=3))


def test_what_it_cannot_do_is_rejected() -> None:
    with pytest.raises(RejectedError, match="complex A"):
        native.backend.build(ScanProblem(batch=1, dim=2, length=3, complex_A=True))


def test_tensors_of_other_shapes_raise_before_anything_is_computed() -> None:
    problem = ScanProblem(batch=1, dim=20, length=12)
    inputs = make_inputs(problem)[0]
    run = native.backend.build(problem)
    for name, tensor in inputs.tensors().items():
        with pytest.raises(RuntimeError, match=f"{name} is|must be"):
            run(inputs.with_tensors(**{name: tensor[:-1] if tensor.dim() == 1 else tensor[..., :-1]}))
        with pytest.raises(RuntimeError, match="must be"):
            run(inputs.with_tensors(**{name: tensor.to(torch.int32)}))
