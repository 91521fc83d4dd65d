"""Reference functions and autograd functions by their upstream names: they agree with the functions they refer to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm.ops.triton import layer_norm as norms
from scanlab.integrations.mamba_ssm.ops.triton import layernorm_gated as gated
from scanlab.integrations.mamba_ssm.ops.triton import ssd_combined as combined
from scanlab.integrations.mamba_ssm.ops.triton import ssd_combined_ref as reference
from scanlab.integrations.mamba_ssm.ops.triton.k_activations import SwiGLU, swiglu
from scanlab.integrations.mamba_ssm.ops.triton.layer_norm_ref import layer_norm_ref, rms_norm_ref


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_reference_norms_agree_with_the_norms(kind: str, dtype: torch.dtype) -> None:
    reference_norm, norm = (
        (layer_norm_ref, norms.layer_norm_fn) if kind == "layer_norm" else (rms_norm_ref, norms.rms_norm_fn)
    )
    torch.manual_seed(0)
    x, residual, x1 = torch.randn(3, 2, 5, 16).to(dtype)
    weight, bias, weight1, bias1 = torch.randn(4, 16)
    got: Any = reference_norm(x, weight, bias, residual, x1, weight1, bias1, prenorm=True, upcast=True)
    want: Any = norm(x, weight, bias, residual.float(), x1, weight1, bias1, prenorm=True)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(
            one, other, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2 if dtype == torch.bfloat16 else 1e-5
        )


def test_reference_norms_take_masks_and_row_scales() -> None:
    x, weight, kept = torch.randn(2, 5, 16), torch.ones(16), torch.rand(2, 5, 16) > 0.5
    scale = torch.rand(2, 5)
    got = rms_norm_ref(x, weight, None, rowscale=scale, dropout_p=0.5, dropout_mask=kept)
    torch.testing.assert_close(got, F.rms_norm(torch.where(kept, 2 * x * scale[..., None], 0.0), (16,), eps=1e-6))
    with pytest.raises(ProblemError, match="leave one out"):
        layer_norm_ref(x, weight, None, x1=x, rowscale=scale)
    with pytest.raises(ProblemError, match="rowscale is torch.complex64: must be real"):
        rms_norm_ref(x, weight, None, rowscale=scale.to(torch.complex64))


def test_autograd_functions_have_apply() -> None:
    x, z = torch.randn(2, 3, 16)
    weight, bias = torch.randn(2, 16)
    eye = torch.eye(16)
    pairs = [
        (norms.LayerNormFn.apply(x, weight, bias), norms.layer_norm_fn(x, weight, bias)),
        (
            norms.LayerNormLinearFn.apply(x, weight, bias, eye, None),
            norms.layer_norm_linear_fn(x, weight, bias, eye, None),
        ),
        (norms.rms_norm_forward(x, weight, None), norms.rms_norm_fn(x, weight, None)),
        (gated.LayerNormFn.apply(x, weight, bias, z), gated.layernorm_fn(x, weight, bias, z)),
        (gated.rms_norm_ref(x, weight, None, z, group_size=4), gated.rmsnorm_fn(x, weight, None, z, group_size=4)),
        (SwiGLU.apply(x), F.silu(x[:, :8]) * x[:, 8:]),
        (swiglu(x), SwiGLU.apply(x)),
    ]
    for got, want in pairs:
        torch.testing.assert_close(got, want)


def test_reference_scans_agree_with_the_scans(two_phase_scan: None) -> None:
    torch.manual_seed(0)
    heads, head_dim, state = 4, 8, 6
    dim = heads * head_dim
    x, z = torch.randn(2, 2, 10, heads, head_dim)
    dt, A = torch.randn(2, 10, heads), -torch.rand(heads)
    B, C = torch.randn(2, 2, 10, 1, state)
    D, dt_bias = torch.randn(2, heads)
    weight, bias = torch.randn(dim + 2 * state, 4), torch.randn(dim + 2 * state)
    torch.testing.assert_close(
        reference.ssd_chunk_scan_combined_ref(x, dt, A, B, C, 4, D, z, dt_bias, True),
        combined.mamba_chunk_scan(x, dt, A, B, C, 4, D, z, dt_bias, True),
        rtol=1e-4,
        atol=1e-4,
    )
    xBC = torch.randn(2, 10, dim + 2 * state)
    zxbcdt = torch.cat((z.flatten(2), xBC, dt), dim=-1)
    want = combined.mamba_split_conv1d_scan_combined(zxbcdt, weight, bias, dt_bias, A, D, 4, headdim=head_dim)
    split = reference.mamba_split_conv1d_scan_ref(zxbcdt, weight, bias, dt_bias, A, D, 4, headdim=head_dim)
    parts = reference.mamba_conv1d_scan_ref(xBC, weight, bias, dt, A, 4, D, z.flatten(2), dt_bias, dt_softplus=True)
    for got in (split, parts):
        assert isinstance(want, Tensor)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ProblemError, match="give headdim"):
        reference.mamba_conv1d_scan_ref(xBC, weight, bias, dt, A, 4, D)
