"""The C++ kernel against the float64 reference: every instruction set, layout, storage type and tile."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import scanlab
from scanlab.contract import registry
from scanlab.contract.cpu import torch_threads, usable_threads
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem, make_inputs
from scanlab.contract.space import Config, config_key
from scanlab.errors import ConfigError
from scanlab.runtime import dispatch
from scanlab_kernels.cpu.isa import isa_index, supported_isas
from scanlab_kernels.selective_scan.native import backend as native

ISAS = supported_isas()
TOLERANCES = {"float32": 1e-6, "float64": 1e-14, "bfloat16": 1e-2, "float16": 2e-3}


def wide(tensor: Tensor) -> Tensor:
    """Return the numbers in float64 or complex128."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def reference_output(problem: ScanProblem, inputs: tuple[ScanInputs, ...]) -> ScanOutput:
    """The reference loop in float64 on the same numbers."""
    cast = (ScanInputs(**{name: wide(tensor) for name, tensor in each.tensors().items()}) for each in inputs)
    return registry.get("reference").build(problem.replace(dtype="float64"))(*cast)


def error(got: Tensor, want: Tensor) -> float:
    """The largest error as a share of the largest value; the error itself where all values are 0."""
    largest = float(want.detach().abs().max())
    return float((wide(got) - wide(want)).detach().abs().max()) / (largest or 1.0)


def leaves(inputs: tuple[ScanInputs, ...]) -> list[Tensor]:
    """Every tensor of the inputs, made to collect gradients."""
    return [tensor.requires_grad_() for each in inputs for tensor in each.tensors().values()]


def gradients(output: ScanOutput, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of random sums over the output and the last state."""
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in output]
    return torch.autograd.grad(output, tensors, [w.to(value.dtype) for w, value in zip(weights, output, strict=True)])


def check(problem: ScanProblem, config: Config | None = None, seed: int = 0) -> None:
    """The kernel agrees with the reference on the problem's own inputs, in dtypes and layout as well."""
    inputs = make_inputs(problem, seed)
    tolerance = TOLERANCES[problem.dtype] * problem.directions
    if not problem.gradients:
        got, want = native.backend.build(problem, config)(*inputs), reference_output(problem, inputs)
    else:
        copies = tuple(
            ScanInputs(**{name: t.detach().clone() for name, t in each.tensors().items()}) for each in inputs
        )
        tensors, others = leaves(inputs), leaves(copies)
        got, want = native.backend.build(problem, config)(*inputs), reference_output(problem, copies)
        for tensor, mine, right in zip(tensors, gradients(got, tensors), gradients(want, others), strict=True):
            assert mine.dtype == tensor.dtype
            assert error(mine, right) <= 10 * tolerance  # sums over time and batch may cancel
    assert error(got.out, want.out) <= tolerance
    assert error(got.last_state, want.last_state) <= (1e-14 if problem.dtype == "float64" else 1e-6)
    assert got.out.dtype == inputs[0].u.dtype
    assert got.out.stride() == inputs[0].u.stride()
    assert got.last_state.dtype == inputs[0].A.dtype


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set of this machine, forced."""
    monkeypatch.setenv("SCANLAB_ISA", request.param)
    return str(request.param)


PROBLEMS: dict[str, dict[str, object]] = {
    "nothing special": {},
    "batch": {"batch": 3, "state": 5},
    "one channel": {"dim": 1},
    "one state": {"state": 1, "length": 2},
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
    "complex": {"complex_A": True, "groups": 2},
    "complex and constant": {"complex_A": True, "constant_B": True, "has_initial_state": True, "direction": "reverse"},
}
DTYPES = tuple(TOLERANCES)
LAYOUTS = ("dim_last", "length_last")


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("differentiated", [False, True], ids=["forward", "gradients"])
def test_agrees_with_the_reference(isa: str, name: str, differentiated: bool) -> None:
    """Every problem in float32 and float64, and in turn in a half type; layouts in turn."""
    sizes: dict[str, object] = {"batch": 1, "dim": 42, "length": 83, "gradients": differentiated}
    number = tuple(PROBLEMS).index(name)
    for turn, dtype in enumerate(("float32", "float64", ("bfloat16", "float16")[number % 2])):
        layout = LAYOUTS[(turn + number) % 2]
        check(ScanProblem(**(sizes | PROBLEMS[name]), dtype=dtype, layout=layout))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_storage_type_in_every_layout(isa: str, dtype: str, layout: str) -> None:
    sizes = ScanProblem(batch=1, dim=36, length=50, direction="bidirectional", gradients=True)
    check(sizes.replace(dtype=dtype, layout=layout))


@pytest.mark.parametrize(
    "config",
    [
        config
        for config in native.backend.space.configs(ScanProblem(batch=1, dim=1, length=1))
        if config["threads"] != 1 and config["time_chunks"] in (1, 4) and config["channel_tile"] in (16, 64, 384)
    ],
    ids=config_key,
)
def test_configurations_agree_with_the_reference(config: Config) -> None:
    check(ScanProblem(batch=1, dim=150, length=140, layout="dim_last", gradients=True), config, seed=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_the_same_bits_whatever_the_threads(layout: str) -> None:
    problem = ScanProblem(batch=3, dim=200, length=70, direction="bidirectional", gradients=True, layout=layout)  # type: ignore[arg-type]
    inputs = make_inputs(problem)
    tensors = leaves(inputs)
    runs = [
        gradients(native.backend.build(problem, {"threads": count})(*inputs), tensors)
        for count in (1, usable_threads())
    ]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("forgetful", [True, False])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_chunks_of_time_change_no_bit(isa: str, direction: str, forgetful: bool) -> None:
    problem = ScanProblem(batch=2, dim=40, length=700, direction=direction, has_initial_state=True, gradients=True)  # type: ignore[arg-type]
    inputs = make_inputs(problem)[0]
    inputs = inputs if forgetful else inputs._replace(A=inputs.A * 1e-5)
    native.backend.build(problem)
    op = torch.ops.scanlab.scan_with_checkpoints.default
    shared = (*inputs, *(None,) * len(ScanInputs._fields), True, direction == "reverse", 2, 16, 32)
    level = isa_index(isa)
    want = op(*shared, 1, 1, level)
    for chunks in (2, 3, 16, 100):
        assert all(torch.equal(one, other) for one, other in zip(op(*shared, chunks, 1, level), want, strict=True))


def test_gradcheck() -> None:
    small = ScanProblem(batch=1, dim=3, length=5, state=2, dtype="float64", gradients=True, has_initial_state=True)
    for problem in (small, small.replace(complex_A=True), small.replace(constant_B=True, direction="reverse")):
        inputs = make_inputs(problem)[0]
        run = native.backend.build(problem, {"time_block": 16})
        assert torch.autograd.gradcheck(lambda *tensors: tuple(run(ScanInputs(*tensors))), leaves((inputs,)))  # noqa: B023


def op_arguments(problem: ScanProblem) -> tuple[object, ...]:
    """Return the arguments of the native ops for a problem."""
    inputs = make_inputs(problem)
    if problem.gradients:
        leaves(inputs)
    reverse = inputs[1] if len(inputs) == 2 else (None,) * len(ScanInputs._fields)
    return (*inputs[0], *reverse, problem.delta_softplus, problem.direction == "reverse", 2, 16, 16, 1, 1, 0)


@pytest.mark.parametrize(
    "name", ["nothing special", "both directions", "groups", "constant B", "initial state", "complex"]
)
def test_the_ops_satisfy_torch(name: str) -> None:
    sizes: dict[str, object] = {"batch": 2, "dim": 6, "length": 19}
    plain = ScanProblem(**(sizes | PROBLEMS[name]))  # type: ignore[arg-type]
    native.backend.build(plain)
    torch.library.opcheck(torch.ops.scanlab.scan.default, op_arguments(plain))
    torch.library.opcheck(torch.ops.scanlab.scan_with_checkpoints.default, op_arguments(plain.replace(gradients=True)))


def test_compiles_into_one_graph() -> None:
    problem = ScanProblem(batch=1, dim=20, length=12, gradients=True, layout="dim_last")
    inputs = make_inputs(problem)[0]
    tensors = leaves((inputs,))
    run = native.backend.build(problem)
    compiled = torch.compile(lambda each: tuple(run(each)), fullgraph=True, backend="aot_eager")
    got, want = ScanOutput(*compiled(inputs)), run(inputs)
    assert torch.equal(got.out, want.out)
    assert all(torch.equal(a, b) for a, b in zip(gradients(got, tensors), gradients(want, tensors), strict=True))


def test_several_python_threads_at_once() -> None:
    problem = ScanProblem(batch=1, dim=100, length=200)
    inputs = make_inputs(problem)
    run = native.backend.build(problem)
    want = run(*inputs).out
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(future.out, want) for future in pool.map(lambda _: run(*inputs), range(40)))


def test_works_after_a_fork() -> None:
    problem = ScanProblem(batch=1, dim=100, length=50)
    inputs = make_inputs(problem)
    run = native.backend.build(problem)
    want = run(*inputs).out
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(run(*inputs).out, want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_number_of_threads_changes_no_bit() -> None:
    problem = ScanProblem(batch=2, dim=200, length=70, direction="bidirectional")
    inputs = make_inputs(problem)
    results = [native.backend.build(problem, {"threads": count})(*inputs) for count in (1, usable_threads())]
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


@pytest.mark.parametrize("time_chunks", [1, 4])
def test_an_infinite_input_stays_infinite_where_nothing_skips(isa: str, time_chunks: int) -> None:
    problem = ScanProblem(batch=1, dim=20, length=70, state=1, has_D=False, has_z=False)
    (inputs,) = make_inputs(problem)
    inputs.u[0, 5, 2] = float("inf")
    config = {"time_block": 16, "time_chunks": time_chunks}
    got, want = native.backend.build(problem, config)(inputs).out, reference_output(problem, (inputs,)).out
    assert want.isinf().any()
    assert torch.equal(got.isnan(), want.isnan())


@pytest.mark.parametrize("exp", native.EXP_VARIANTS)
@pytest.mark.parametrize(
    ("value", "rate"),
    [(1.0, -80.0), (1.0, -90.0), (30.0, -1e4), (1e30, -1e30), (1.0, 3.0), (1e-30, -1.0), (2.0, 0.0), (1e-3, 1e-3)],
)
def test_extreme_decays_follow_the_formula(isa: str, exp: str, value: float, rate: float) -> None:
    inputs, problem = with_delta(value, rate)
    got = native.backend.build(problem, {"exp": exp})(inputs)
    assert error(got.out, reference_output(problem, (inputs,)).out) < 3e-6


@pytest.mark.parametrize("exp", native.EXP_VARIANTS)
def test_overflow_is_infinite_and_nan_stays_in_its_channel(isa: str, exp: str) -> None:
    inputs, problem = with_delta(1.0, 40.0)
    inputs.delta[0, 3, 4] = float("nan")
    out, last_state = native.backend.build(problem, {"exp": exp})(inputs)
    assert not out[0, :, 4:].isfinite().any()
    healthy = [channel for channel in range(problem.dim) if channel != 3]
    assert last_state[0, healthy].isinf().all()
    assert out[0, 3, 4:].isnan().all()
    assert out[0, :, :2].isfinite().all()
    inputs, problem = with_delta(1.0, -1.0)
    inputs.u[0, 5, 2] = float("inf")
    got, want = native.backend.build(problem, {"exp": exp})(inputs).out, reference_output(problem, (inputs,)).out
    assert torch.equal(got.isfinite(), want.isfinite())


@pytest.mark.parametrize("dim", [16, 20, 50])
@pytest.mark.parametrize("name", ["B", "C"])
def test_an_infinite_coefficient_reaches_the_gradients_that_the_formula_says(isa: str, name: str, dim: int) -> None:
    problem = ScanProblem(batch=1, dim=dim, length=9, state=5, gradients=True, has_z=False, has_D=False)
    tensors = {key: tensor.abs() for key, tensor in make_inputs(problem)[0].tensors().items()}
    tensors["A"] = -tensors["A"]
    tensors[name][..., 2, 4] = float("inf")

    def gradients(backend: str) -> tuple[Tensor, ...]:
        leaves = {key: tensor.clone().requires_grad_() for key, tensor in tensors.items()}
        out = registry.get(backend).build(problem)(ScanInputs(**leaves)).out
        return torch.autograd.grad(out.sum(), list(leaves.values()))

    for gradient, want in zip(gradients("native"), gradients("reference"), strict=True):
        assert torch.equal(gradient.isnan(), want.isnan())
        assert torch.equal(gradient.isinf(), want.isinf())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saturating_softplus_and_gate(isa: str, dtype: str) -> None:
    problem = ScanProblem(batch=1, dim=20, length=12, dtype=dtype, has_delta_bias=False)
    inputs = make_inputs(problem)[0]
    values = torch.tensor([-1e4, -150.0, -80.0, -20.0, -1e-3, 0.0, 1e-3, 19.9, 20.1, 80.0, 150.0, 1e4]).to(inputs.u)
    inputs = inputs._replace(delta=values.expand_as(inputs.u), z=values.flip(0).expand_as(inputs.u))
    got, want = native.backend.build(problem)(inputs), reference_output(problem, (inputs,))
    for one, other in zip(got.out.unbind(-1), want.out.unbind(-1), strict=True):
        assert float((one - other).abs().max()) <= TOLERANCES[dtype] * float(other.abs().max()) + 1e-25


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANLAB_ISA", "mmx")
    with pytest.raises(ConfigError, match="SCANLAB_ISA='mmx'"):
        native.backend.build(ScanProblem(batch=1, dim=2, length=3))


def test_a_variant_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="exp=fast is not implemented for a complex A"):
        native.backend.build(ScanProblem(batch=1, dim=2, length=3, complex_A=True), {"exp": "fast"})


def test_tensors_of_other_shapes_raise_before_anything_is_computed() -> None:
    problem = ScanProblem(batch=1, dim=20, length=12)
    inputs = make_inputs(problem)[0]
    run = native.backend.build(problem)
    for name, tensor in inputs.tensors().items():
        with pytest.raises((ValueError, TypeError), match=f"{name} is|must be"):
            run(inputs.with_tensors(**{name: tensor[:-1] if tensor.dim() == 1 else tensor[..., :-1]}))
        with pytest.raises((ValueError, TypeError), match="must be"):
            run(inputs.with_tensors(**{name: tensor.to(torch.int32)}))


def explained_threads(problem: ScanProblem, most: int) -> tuple[int, float, float]:
    """Return the threads that `explain` names for a scan where torch takes `most`, its work and the hand-over in us."""
    dispatch.clear()
    with torch_threads(most):
        scanlab.selective_scan_fn(*make_inputs(problem)[0][:-1], delta_softplus=True, backend="native")
        said = re.search(
            rf"it takes (\d+) of torch's {most} threads, by about (\S+) us of work and (\S+) us of handing some over",
            scanlab.explain(),
        )
    assert said is not None
    return int(said[1]), float(said[2]), float(said[3])


def test_more_threads_take_part_only_where_the_work_is_ten_times_the_handing_over() -> None:
    for problem in (
        ScanProblem(batch=1, dim=8, length=8),
        ScanProblem(batch=1, dim=64, length=64),
        ScanProblem(batch=2, dim=192, length=100, complex_A=True),
        ScanProblem(batch=8, dim=384, length=197),
    ):
        threads, work_us, handover_us = explained_threads(problem, 2)
        rounded = work_us / handover_us == pytest.approx(20, rel=0.1)  # both are printed with few digits
        assert rounded or threads == (2 if work_us >= 20 * handover_us else 1)
    assert explained_threads(ScanProblem(batch=1, dim=8, length=8), 2)[0] == 1
    assert explained_threads(problem, 1)[0] == 1


def test_explain_leaves_configured_threads_alone() -> None:
    dispatch.clear()
    (inputs,) = make_inputs(ScanProblem(batch=1, dim=8, length=8))
    scanlab.selective_scan_fn(*inputs[:-1], delta_softplus=True, backend="native:threads=2")
    assert "dim=8,length=8" in scanlab.explain()
    assert "it takes" not in scanlab.explain()
