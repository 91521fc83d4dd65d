"""The dtype rules of add and norm, in bfloat16 where they differ."""

import pytest
import torch

from scanlab.models.block import LayerNorm, RMSNorm, add_norm

HIDDEN = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
RESIDUAL = 100.0 + torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[RMSNorm, LayerNorm])
def norm(request):
    module = request.param(64, 1e-5).bfloat16()
    torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return module


def exact(norm, total):
    wide = total.double()
    if isinstance(norm, LayerNorm):
        wide = wide - wide.mean(-1, keepdim=True)
    scaled = wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * norm.weight.double()
    return scaled + norm.bias.double() if isinstance(norm, LayerNorm) else scaled


@pytest.mark.parametrize("residual_in_fp32", [True, False])
def test_fused_normalises_the_sum_before_rounding_it(norm, residual_in_fp32):
    residual = RESIDUAL if residual_in_fp32 else RESIDUAL.bfloat16()
    normed, total = add_norm(HIDDEN, residual, norm, fused=True, residual_in_fp32=residual_in_fp32)
    unrounded = HIDDEN.float() + residual.float()
    assert normed.dtype == torch.bfloat16
    assert total.dtype == (torch.float32 if residual_in_fp32 else torch.bfloat16)
    assert torch.equal(total, unrounded.to(total.dtype))
    torch.testing.assert_close(normed.double(), exact(norm, unrounded), rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("residual_in_fp32", [True, False])
def test_unfused_rounds_the_sum_before_normalising_it(norm, residual_in_fp32):
    residual = RESIDUAL if residual_in_fp32 else RESIDUAL.bfloat16()
    normed, total = add_norm(HIDDEN, residual, norm, fused=False, residual_in_fp32=residual_in_fp32)
    rounded = (HIDDEN + residual).bfloat16()
    assert normed.dtype == torch.bfloat16
    assert total.dtype == (torch.float32 if residual_in_fp32 else torch.bfloat16)
    torch.testing.assert_close(normed.double(), exact(norm, rounded), rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("fused", [True, False])
def test_the_first_residual_is_hidden_itself(norm, fused):
    _, total = add_norm(HIDDEN, None, norm, fused=fused, residual_in_fp32=True)
    assert total.dtype == torch.float32
    assert torch.equal(total, HIDDEN.float())
