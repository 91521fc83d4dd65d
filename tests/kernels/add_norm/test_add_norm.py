"""Residual add and norm: both implementations against float64, dtypes, gradients, torch's own checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.instruction_sets import (
    DTYPES,
    INSTRUCTION_SETS,
    TOLERANCES,
    assert_close,
    error,
    gradients,
    instruction_set,
    wide,
)
from scanlab.contract.cpu import torch_threads
from scanlab.errors import ProblemError
from scanlab.models.block import LayerNorm, RMSNorm
from scanlab.models.block import add_norm as model_add_norm
from scanlab.runtime import ops as mixer

pytestmark = pytest.mark.usefixtures("native")


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    isa=st.sampled_from(INSTRUCTION_SETS),
    shape=st.sampled_from([(1,), (7,), (200,), (3, 16), (130, 5), (2, 70, 40), (0, 6), (2, 2, 3, 33)]),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["rms", "layer"]),
    has_residual=st.booleans(),
    has_bias=st.booleans(),
    residual_in_fp32=st.booleans(),
    turned=st.booleans(),
)
def test_native_is_the_reference_in_float64(
    isa, shape, dtype, kind, has_residual, has_bias, residual_in_fp32, turned
) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(shape).to(dtype)
    if turned:
        hidden = hidden.movedim(-1, 0).contiguous().movedim(0, -1)
    tensors: dict[str, Any] = {"hidden": hidden, "weight": torch.randn(shape[-1])}
    if has_bias:
        tensors["bias"] = torch.randn(shape[-1])
    if has_residual:
        double = dtype == torch.float64
        tensors["residual"] = torch.randn(shape, dtype=torch.float32 if residual_in_fp32 and not double else dtype)
    for tensor in tensors.values():
        tensor.requires_grad_()
    exact = {name: wide(tensor) for name, tensor in tensors.items()}
    residuals = [each.pop("residual", None) for each in (tensors, exact)]
    options = {"kind": kind, "residual_in_fp32": residual_in_fp32}
    with instruction_set(isa):
        out, total = mixer.add_norm(residual=residuals[0], **tensors, **options)
        seeds = [torch.randn(shape, dtype=torch.float64).to(each.dtype) for each in (out, total)]
        leaves = [each for each in (*tensors.values(), residuals[0]) if each is not None]
        got = [out, total, *gradients([out, total], leaves, seeds)]
    expected = mixer.in_torch()(mixer.add_norm)(residual=residuals[1], **exact, **options)
    wide_leaves = [each for each in (*exact.values(), residuals[1]) if each is not None]
    want = [*expected, *gradients(expected, wide_leaves, seeds)]
    # a row of one number is its own scale: its gradient is a difference of equal numbers
    compared = 2 if shape[-1] == 1 else len(got)
    names = ["out", "total", *tensors, "residual"][:compared]
    tolerance = TOLERANCES[dtype] * (4 if kind == "layer" else 2)
    assert_close(got[:compared], want[:compared], names[: len(got)], tolerance)
    assert out.dtype == dtype
    assert total.dtype == (torch.float32 if residual_in_fp32 and dtype != torch.float64 else dtype)
    assert [each.dtype for each in got[2:]] == [each.dtype for each in leaves]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("residual_in_fp32", [False, True])
def test_is_the_fused_arithmetic_of_the_model(dtype, kind, residual_in_fp32) -> None:
    norm = RMSNorm(24, eps=1e-5) if kind == "rms" else LayerNorm(24, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    hidden, residual = torch.randn(2, 9, 24).to(dtype), torch.randn(2, 9, 24)
    residual = residual if residual_in_fp32 else residual.to(dtype)
    want = model_add_norm(hidden, residual, norm, fused=True, residual_in_fp32=residual_in_fp32)
    for add_norm in (mixer.add_norm, mixer.in_torch()(mixer.add_norm)):
        got = add_norm(
            hidden, residual, norm.weight, getattr(norm, "bias", None), kind=kind, residual_in_fp32=residual_in_fp32
        )
        assert [each.dtype for each in got] == [each.dtype for each in want]
        assert torch.equal(got[1], want[1])
        assert_close([got[0]], [want[0]], ["out"], 1e-6 if dtype == torch.float32 else 8e-3)


def test_gradient_of_one_output_alone() -> None:
    hidden, residual, weight = (
        torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((5, 7), (5, 7), (7,))
    )
    for pick in (0, 1):
        (got,) = torch.autograd.grad(mixer.add_norm(hidden, residual, weight)[pick].square().sum(), [hidden])
        (want,) = torch.autograd.grad(
            mixer.in_torch()(mixer.add_norm)(hidden, residual, weight)[pick].square().sum(), [hidden]
        )
        assert_close([got], [want], ["hidden"], 1e-13)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_gradcheck(kind) -> None:
    inputs = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((3, 5), (3, 5), (5,), (5,))]
    assert torch.autograd.gradcheck(lambda *tensors: mixer.add_norm(*tensors, kind=kind), inputs)


def test_same_bits_on_any_number_of_threads() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(shape).requires_grad_() for shape in ((1000, 192), (1000, 192), (192,))]
    seeds = [torch.randn(1000, 192) for _ in range(2)]

    def run() -> list[torch.Tensor]:
        outs = mixer.add_norm(*inputs)
        return [*outs, *gradients(outs, inputs, seeds)]

    with torch_threads(1):
        alone = run()
    with torch_threads(2):
        together = run()
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("dim", [2, 3, 8, 20, 100])
@pytest.mark.parametrize("mean", [0.0, 10.0, 1e3])
def test_rows_that_do_not_fill_vectors_are_as_exact_as_torchs(isa: str, dim: int, mean: float) -> None:
    torch.manual_seed(0)
    hidden, weight, seed = torch.randn(64, dim) + mean, torch.randn(dim), torch.randn(64, dim)

    def normalised(hidden: torch.Tensor) -> list[torch.Tensor]:
        leaf = hidden.clone().requires_grad_()
        return [out := F.layer_norm(leaf, (dim,), weight.to(leaf), None, 1e-6), *gradients([out], [leaf], [seed])]

    leaf = hidden.clone().requires_grad_()
    out = mixer.add_norm(leaf, None, weight, None, kind="layer", eps=1e-6)[0]
    got = [out, *gradients([out], [leaf], [seed])]
    for one, other, want in zip(got, normalised(hidden), normalised(hidden.double()), strict=True):
        assert error(one, want) <= 4 * error(other, want) + 1e-6


def test_torchs_own_checks_of_the_op_and_of_compiled_code() -> None:
    hidden, residual, weight = torch.randn(2, 3, 8).bfloat16(), torch.randn(2, 3, 8), torch.randn(8)
    arguments = [each.requires_grad_() for each in (hidden, residual, weight)]
    torch.library.opcheck(torch.ops.scanlab_mixer.add_norm.default, (*arguments, None, 1e-5, True, True))

    torch._dynamo.reset()
    compiled = torch.compile(lambda *tensors: mixer.add_norm(*tensors)[0], fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), mixer.add_norm(*arguments)[0])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.tensor(1.0), None, torch.ones(1)), {}, "no axis"),
        ((torch.ones(2, 3), torch.ones(3), torch.ones(3)), {}, "residual is (3,): must be (2, 3)"),
        ((torch.ones(2, 3), None, torch.ones(2)), {}, "weight is (2,)"),
        ((torch.ones(2, 3), None, torch.ones(3), torch.ones(4)), {}, "bias is (4,)"),
        ((torch.ones(2, 3), torch.ones(2, 3).half(), torch.ones(3)), {}, "residual is torch.float16"),
        ((torch.ones(2, 3).long(), None, torch.ones(3)), {}, "hidden is torch.int64"),
        ((torch.ones(2, 3), None, torch.ones(3)), {"kind": "batch"}, "kind='batch'"),
    ],
)
def test_what_does_not_fit_is_named(arguments, options, message) -> None:
    with pytest.raises(ProblemError) as caught:
        mixer.add_norm(*arguments, **options)
    assert message in str(caught.value)
