"""Backends of `ssd`. Run with: pytest tests/kernels/ssd"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from scanlab.contract.problem import ScanInputs, ScanProblem
from scanlab.contract.verify import reference_outputs, relative_error, verify
from scanlab.errors import ProblemError
from scanlab.testing import OpContract
from scanlab_kernels.selective_scan import reference as selective_scan
from scanlab_kernels.ssd import chunked, compiled, reference, scan
from scanlab_kernels.ssd.native import backend as native
from scanlab_kernels.ssd.op import op
from scanlab_kernels.ssd.problem import SsdProblem, make_inputs

PLAIN = SsdProblem(batch=2, length=83, heads=4, head_dim=6, state=5, groups=2, has_seq_idx=True)


class SsdContract(OpContract):
    """Contract of a backend of `ssd`: `OpContract`, and what the recurrence promises."""

    def test_final_state_continues_the_sequence(self) -> None:
        problem = PLAIN.replace(has_seq_idx=False, has_initial_state=True)
        (whole,) = make_inputs(problem)
        expected = self.build(problem)(whole)
        out, h = [], whole.initial_state
        for part in (slice(0, 40), slice(40, 83)):
            varying = {name: getattr(whole, name)[:, part] for name in ("x", "dt", "B", "C")}
            piece = whole._replace(**varying, initial_state=h)
            result = self.build(problem.replace(length=piece.x.shape[1]))(piece)
            out.append(result.out)
            h = result.final_state
        torch.testing.assert_close(torch.cat(out, dim=1), expected.out)
        torch.testing.assert_close(h, expected.final_state)

    def test_step_sizes_below_zero_count_as_zero(self) -> None:
        problem = PLAIN.replace(has_seq_idx=False, has_dt_bias=False, dt_softplus=False)
        (inputs,) = make_inputs(problem)
        below = inputs._replace(dt=torch.where(torch.arange(83)[:, None] % 3 == 1, -inputs.dt, inputs.dt))
        function = self.build(problem)
        expected, found = function(below._replace(dt=below.dt.clamp(min=0))), function(below)
        torch.testing.assert_close(found.out, expected.out)
        torch.testing.assert_close(found.final_state, expected.final_state)

    def test_new_sequence_forgets_whatever_came_before(self) -> None:
        problem = PLAIN.replace(has_initial_state=True)
        (inputs,) = make_inputs(problem)
        inputs = inputs._replace(seq_idx=(torch.arange(83) >= 41).int().expand(2, 83))
        spoiled = inputs._replace(x=inputs.x.clone(), initial_state=torch.full_like(inputs.initial_state, 1e30))
        spoiled.x[:, :41] = 1e30
        function = self.build(problem)
        expected, found = function(inputs), function(spoiled)
        assert torch.equal(found.out[:, 41:], expected.out[:, 41:])
        assert torch.equal(found.final_state, expected.final_state)


class TestReference(SsdContract):
    backend = reference.backend

    def test_nan_stays_in_its_sequence(self) -> None:
        (inputs,) = make_inputs(PLAIN)
        inputs = inputs._replace(seq_idx=(torch.arange(83) >= 41).int().expand(2, 83))
        spoiled = inputs._replace(x=inputs.x.clone())
        spoiled.x[:, 20] = float("nan")
        function = self.build(PLAIN)
        expected, found = function(inputs), function(spoiled)
        assert torch.equal(found.out[:, 41:], expected.out[:, 41:])
        assert torch.equal(found.final_state, expected.final_state)


class TestChunked(SsdContract):
    backend = chunked.backend


class TestScan(SsdContract):
    backend = scan.backend

    def test_new_sequence_forgets_whatever_came_before(self) -> None:
        assert "keeps no sequences apart" in str(scan.backend.rejects(PLAIN))


class TestCompiled(SsdContract):
    backend = compiled.backend

    @pytest.fixture(autouse=True)
    def interpreted(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Run the code of a chunk as it is traced: compiling it for each shape takes seconds."""
        monkeypatch.setattr(compiled, "compile_function", lambda function, examples, threads: function)
        compiled.kernel.cache_clear()
        yield
        compiled.kernel.cache_clear()


@pytest.mark.slow
def test_the_compiled_chunk_agrees_with_the_reference() -> None:
    if compiled.backend.unavailable():
        pytest.skip(str(compiled.backend.unavailable()))
    problem = PLAIN.replace(has_initial_state=True)
    function = compiled.backend.build(problem, {"chunk": 32})
    verdict = verify(function, reference_outputs(problem, make_inputs(problem)))
    assert verdict.passed, verdict.reason


class TestNative(SsdContract):
    backend = native.backend


def test_is_the_selective_scan_with_one_rate_for_all_states_of_a_head() -> None:
    problem = SsdProblem(batch=2, length=37, heads=4, head_dim=3, state=5, groups=2, dtype="float64", has_z=True)
    (inputs,) = make_inputs(problem)
    found = reference.backend.build(problem)(inputs)
    channels = 4 * 3

    def over_channels(values: Tensor) -> Tensor:
        return values.flatten(2).mT

    def each_channel(values: Tensor) -> Tensor:
        return values.repeat_interleave(3, dim=-1)

    wide = ScanInputs(
        u=over_channels(inputs.x),
        delta=each_channel(inputs.dt).mT,
        A=each_channel(inputs.A)[:, None].expand(channels, 5),
        B=inputs.B.movedim(1, -1),
        C=inputs.C.movedim(1, -1),
        D=each_channel(inputs.D),
        z=over_channels(inputs.z),
        delta_bias=each_channel(inputs.dt_bias),
    )
    asked = ScanProblem.of(wide, delta_softplus=True, direction="forward")
    out, last_state = selective_scan.backend.build(asked)(wide)
    torch.testing.assert_close(found.out, out.mT.unflatten(2, (4, 3)))
    torch.testing.assert_close(found.final_state, last_state.unflatten(1, (4, 3)))


def test_is_one_product_with_a_semiseparable_matrix() -> None:
    """Dao and Gu 2024, eq. 16: y = (L o C B^T) x, L from differences of cumulative sums, over the whole length."""
    problem = SsdProblem(batch=1, length=50, heads=2, head_dim=3, state=4, dtype="float64", skip="none")
    (inputs,) = make_inputs(problem)
    dt = torch.nn.functional.softplus(inputs.dt + inputs.dt_bias)
    sums = (dt * inputs.A).cumsum(1)[0].T
    L = (sums[:, :, None] - sums[:, None, :]).exp().tril()
    M = L * (inputs.C[0, :, 0] @ inputs.B[0, :, 0].T)
    expected = torch.einsum("hts,shp->thp", M, (dt[..., None] * inputs.x)[0])
    found = reference.backend.build(problem)(inputs)
    torch.testing.assert_close(found.out[0], expected)


def test_agrees_with_the_independent_implementation_of_transformers() -> None:
    bamba = pytest.importorskip("transformers.models.bamba.modeling_bamba")
    if not hasattr(bamba, "mamba2_chunk_scan"):
        pytest.skip("this version of transformers has no mamba2_chunk_scan")
    problem = SsdProblem(
        batch=2, length=45, heads=4, head_dim=8, state=16, groups=2, has_initial_state=True, dt_limit="0.05:0.4"
    )
    (inputs,) = make_inputs(problem)
    out, final_state = bamba.mamba2_chunk_scan(
        *inputs[:5],
        chunk_size=16,
        D=inputs.D,
        dt_bias=inputs.dt_bias,
        initial_states=inputs.initial_state,
        dt_softplus=True,
        dt_limit=problem.limits,
        return_final_states=True,
    )
    found = reference.backend.build(problem)(inputs)
    assert relative_error(found.out, out.double()) < 1e-5
    assert relative_error(found.final_state, final_state.double()) < 1e-5


def test_a_problem_is_what_its_inputs_pose() -> None:
    for corner in op.corners:
        assert isinstance(corner, SsdProblem)
        (inputs,) = make_inputs(corner)
        posed = SsdProblem.of(
            inputs, dt_softplus=corner.dt_softplus, dt_limit=corner.limits, gradients=corner.gradients
        )
        assert posed == corner
        assert SsdProblem.parse(corner.key) == corner


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"B": torch.zeros(2, 83, 3, 5)}, r"C is float32 \(2, 83, 2, 5\) on cpu: must be float32 \(2, 83, 3, 5\)"),
        ({"dt": torch.zeros(2, 83, 4, dtype=torch.bfloat16)}, r"dt is bfloat16 .*: must be float32 \(2, 83, 4\)"),
        ({"seq_idx": torch.zeros(2, 83)}, r"seq_idx is float32 .*: must be int32 \(2, 83\)"),
        ({"D": torch.zeros(4, 5)}, r"D is float32 \(4, 5\) on cpu: must be float32 \(4, 6\)"),
        ({"x": torch.zeros(2, 83, 24)}, r"x is float32 \(2, 83, 24\).*: must be \(batch, length, heads, head_dim\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(changes: dict[str, Tensor], message: str) -> None:
    (inputs,) = make_inputs(PLAIN)
    with pytest.raises(ProblemError, match=message):
        SsdProblem.of(inputs._replace(**changes), dt_softplus=True)


@pytest.mark.parametrize("dt_limit", ["1:0.5", "low:high", "0.1"])
def test_limits_that_are_none_are_refused(dt_limit: str) -> None:
    with pytest.raises(ProblemError, match="dt_limit="):
        PLAIN.replace(dt_limit=dt_limit)
