"""Reference norms of `mamba_ssm.ops.triton.layer_norm`, in plain PyTorch.

Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/triton/layer_norm.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from scanlab.errors import ProblemError
from scanlab_kernels.checks import expect_dense_real

Norm = Callable[[Tensor, Tensor, Tensor | None, float], Tensor]


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return F.layer_norm(x.to(weight.dtype), x.shape[-1:], weight, bias, eps)


def _rms_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    normed = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
    return normed if bias is None else normed + bias


def layer_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
    upcast: bool = False,
    norm: Norm = _layer_norm,
) -> Tensor | tuple[Tensor, ...]:
    """Return the LayerNorm of dropout(rowscale x) + dropout(x1) + residual.

    Args:
        x: (..., dim).
        weight: (dim,).
        bias: (dim,).
        residual: The shape of x.
        x1: The shape of x.
        weight1: (dim,), for a second norm of the same sum.
        bias1: (dim,).
        eps: Added to the variance.
        dropout_p: Probability of dropping an element of x or x1.
        rowscale: (...), a factor for each row of x.
        prenorm: Return the sum too.
        dropout_mask: The elements of x to keep; drawn where None.
        dropout_mask1: The elements of x1 to keep; drawn where None.
        upcast: Compute in float32.
        norm: Another norm than LayerNorm: (sum, weight, bias, eps) -> the normalised sum.

    Returns:
        out in the dtype of x; where asked for, a tuple: out, the second norm, and the sum.

    Raises:
        ProblemError: x1 and rowscale are both given, or a tensor is complex.
    """
    if x1 is not None and rowscale is not None:
        raise ProblemError("x1 and rowscale are given: rows are scaled only where there is no x1; leave one out.")
    expect_dense_real(x=x, weight=weight, bias=bias, residual=residual, x1=x1, weight1=weight1, bias1=bias1)
    expect_dense_real(rowscale=rowscale)

    def wide(tensor: Tensor) -> Tensor:
        return tensor.float() if upcast else tensor

    def dropped(tensor: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None and dropout_p > 0.0:
            return tensor.masked_fill(~mask, 0.0) / (1.0 - dropout_p)
        return F.dropout(tensor, dropout_p)

    total = dropped(wide(x) if rowscale is None else wide(x) * rowscale[..., None], dropout_mask)
    if x1 is not None:
        total = total + dropped(wide(x1), dropout_mask1)
    if residual is not None:
        total = (total + wide(residual)).to(total.dtype)
    outs = [
        norm(total, wide(gain), None if shift is None else wide(shift), eps).to(x.dtype)
        for gain, shift in ((weight, bias), (weight1, bias1))
        if gain is not None
    ]
    if prenorm:
        outs.append(total)
    return outs[0] if len(outs) == 1 else tuple(outs)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
    upcast: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Return `layer_norm_ref` without subtracting the mean."""
    given = (residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm)
    return layer_norm_ref(x, weight, bias, *given, dropout_mask, dropout_mask1, upcast, norm=_rms_norm)
