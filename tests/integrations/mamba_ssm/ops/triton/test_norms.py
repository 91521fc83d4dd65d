"""The official norms, plain and gated, against their definition in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.closeness import close
from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm.ops.triton import layer_norm as norms
from scanlab.integrations.mamba_ssm.ops.triton import layernorm_gated as gated_norms


def plain_norm(total: Tensor, weight: Tensor | float, bias: Tensor | None, eps: float, rms: bool) -> Tensor:
    total = total if rms else total - total.mean(-1, keepdim=True)
    normed = total / (total.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    return normed if bias is None else normed + bias


@pytest.mark.parametrize(
    ("rms", "residual", "prenorm", "parallel", "scaled"),
    [each for each in itertools.product((False, True), repeat=5) if not (each[3] and each[4])],
)
def test_norms_and_their_gradients(rms, residual, prenorm, parallel, scaled):
    draw = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()

    x, weight, bias = leaf(2, 3, 8), leaf(8), leaf(8)
    optional: dict[str, Any] = {
        "residual": leaf(2, 3, 8) if residual else None,
        "x1": leaf(2, 3, 8) if parallel else None,
        "weight1": leaf(8) if parallel else None,
        "rowscale": leaf(2, 3) if scaled else None,
    }
    total = x if not scaled else x * optional["rowscale"][..., None]
    for name in ("x1", "residual"):
        total = total if optional[name] is None else total + optional[name]
    expected = [plain_norm(total, weight, bias, 1e-6, rms)]
    if parallel:
        expected.append(plain_norm(total, optional["weight1"], None, 1e-6, rms))
    expected += [total] if prenorm else []
    function = norms.rms_norm_fn if rms else norms.layer_norm_fn
    found: Any = function(x, weight, bias, prenorm=prenorm, **optional)
    found = list(found) if isinstance(found, tuple) else [found]
    leaves = [each for each in (x, weight, bias, *optional.values()) if each is not None]
    seeds = [torch.randn(each.shape, generator=draw, dtype=torch.float64) for each in expected]
    for value, truth in zip(found, expected, strict=True):
        close(value, truth)
    for value, truth in zip(
        torch.autograd.grad(found, leaves, seeds), torch.autograd.grad(expected, leaves, seeds), strict=True
    ):
        close(value, truth)


@pytest.mark.parametrize(
    ("hidden", "residual", "in_fp32", "expected"),
    [
        (torch.bfloat16, None, False, torch.bfloat16),
        (torch.bfloat16, None, True, torch.float32),
        (torch.bfloat16, torch.float32, False, torch.float32),
        (torch.bfloat16, torch.bfloat16, True, torch.bfloat16),
        (torch.float32, torch.bfloat16, False, torch.bfloat16),
    ],
)
def test_the_sum_has_the_dtype_that_upstream_gives_it(hidden, residual, in_fp32, expected):
    x = torch.rand(2, 4, dtype=hidden)
    before = None if residual is None else torch.rand(2, 4, dtype=residual)
    out, total = norms.rms_norm_fn(x, torch.ones(4), None, before, prenorm=True, residual_in_fp32=in_fp32)
    assert (out.dtype, total.dtype) == (hidden, expected)


def test_dropout_returns_the_masks_of_what_it_kept():
    torch.manual_seed(0)
    x, weight = torch.ones(50, 40), torch.ones(40)
    out, total, mask, mask1 = norms.layer_norm_fn(
        x, weight, None, x1=x, dropout_p=0.25, prenorm=True, return_dropout_mask=True
    )
    assert mask.float().mean() == pytest.approx(0.75, abs=0.05)
    torch.testing.assert_close(total, (mask.float() + mask1.float()) / 0.75)
    close(out, plain_norm(total, weight, None, 1e-6, False))
    assert norms.rms_norm_fn(x, weight, None, return_dropout_mask=True)[1:] == (None, None)
    module = norms.RMSNorm(40, dropout_p=0.5)
    assert (module(x, prenorm=True)[1] == 0).any()
    assert torch.equal(module.eval()(x, prenorm=True)[1], x)


def test_norm_and_linear_layer():
    x, residual, weight = torch.rand(3, 8), torch.rand(3, 8), torch.rand(5, 8)
    out, total = norms.layer_norm_linear_fn(x, torch.ones(8), None, weight, None, residual, prenorm=True)
    close(total, x + residual)
    close(out, plain_norm(total, torch.ones(8), None, 1e-6, False) @ weight.T)
    with pytest.raises(ProblemError, match="x1 and rowscale"):
        norms.layer_norm_fn(x, torch.ones(8), None, x1=x, rowscale=torch.ones(3))
    with pytest.raises(ProblemError, match="residual is torch.complex128: must be real"):
        norms.layer_norm_fn(x, torch.ones(8), None, residual.to(torch.complex128))


def test_a_linear_layer_of_a_vector_is_refused() -> None:
    with pytest.raises(ProblemError, match="linear_weight"):
        norms.layer_norm_linear_fn(torch.randn(5, 8), torch.ones(8), None, torch.randn(8), None)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("module", [gated_norms.RMSNorm, gated_norms.LayerNorm])
def test_gated_norms(module, group, before):
    draw = torch.Generator().manual_seed(0)
    x, z = (torch.randn(3, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    norm = module(8, group_size=group, norm_before_gate=before, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight, generator=draw)
    value = x if before else x * F.silu(z)
    expected = plain_norm(value.unflatten(-1, (-1, group or 8)), 1.0, None, 1e-5, module is gated_norms.RMSNorm)
    expected = expected.flatten(-2) * norm.weight
    close(norm(x, z), expected * F.silu(z) if before else expected)
    with pytest.raises(ProblemError, match="z is torch.complex128"):
        norm(x, z.to(torch.complex128))


def test_the_result_has_the_dtype_of_x_whatever_is_added() -> None:
    x, wide = torch.randn(2, 8, dtype=torch.float16), torch.randn(2, 8)
    weight = torch.ones(8)
    outs = norms.layer_norm_fn(x, weight, None, x1=wide, weight1=weight, prenorm=True)
    assert [each.dtype for each in outs] == [torch.float16] * 3
    out = norms.layer_norm_fn(wide, weight, None, residual=wide, x1=wide.double())
    assert isinstance(out, Tensor)
    close(out, F.layer_norm(3 * wide, (8,), weight))
    with pytest.raises(ProblemError, match="x is torch.int32: must be floating"):
        norms.layer_norm_fn(x.int(), weight, None, x1=x)
