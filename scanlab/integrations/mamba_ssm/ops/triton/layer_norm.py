"""The fused norms of `mamba_ssm.ops.triton.layer_norm`, with their signatures, on scanlab_kernels.add_norm.op.

Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/triton/layer_norm.py; the semantics of the Triton kernel.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanlab.errors import ProblemError
from scanlab.runtime.ops import add_norm


def layer_norm_fn(
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
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor | tuple[Tensor | None, ...]:
    """The norm of dropout(rowscale x) + dropout(x1) + residual, by weight and, where given, once more by weight1.

    x, x1, residual  (..., dim); rowscale (...), one factor for each row
    weight, bias     (dim,)
    Returns out in the dtype of x; then the second norm with weight1; then, if prenorm, the sum, in the dtype of
    the residual, or without one in float32 where residual_in_fp32 and else as x; then, if return_dropout_mask, the
    masks of what was kept of x and x1, None where nothing was dropped. Differentiable.
    Raises ProblemError where shapes or dtypes do not fit.
    """
    if x1 is not None and rowscale is not None:
        raise ProblemError("x1 and rowscale are given: rows are scaled only where there is no x1; leave one out.")
    branch = x if rowscale is None else x * rowscale.reshape(x.shape[:-1])[..., None].to(x.dtype)
    branch, mask = _dropped(branch, dropout_p)
    mask1 = None
    if x1 is not None:
        other, mask1 = _dropped(x1, dropout_p)
        branch = branch + other
    total_dtype = residual.dtype if residual is not None else torch.float32 if residual_in_fp32 else x.dtype
    if residual is not None and residual.dtype != x.dtype:
        residual = residual.to(torch.promote_types(x.dtype, torch.float32))
    norm = functools.partial(
        add_norm, eps=eps, kind="rms" if is_rms_norm else "layer", residual_in_fp32=total_dtype != x.dtype
    )
    out, total = norm(branch, residual, weight, bias)
    outs: list[Tensor | None] = [out]
    if weight1 is not None:
        outs.append(norm(branch, residual, weight1, bias1)[0])
    if prenorm:
        outs.append(total.to(total_dtype))
    if return_dropout_mask:
        outs += [mask, mask1]
    return out if len(outs) == 1 else tuple(outs)


def _dropped(x: Tensor, probability: float) -> tuple[Tensor, Tensor | None]:
    """x with elements dropped and the others scaled up, and the mask of those that were kept."""
    if probability == 0.0:
        return x, None
    kept = torch.rand_like(x, dtype=torch.float32) > probability
    return torch.where(kept, x / (1.0 - probability), 0.0), kept


def rms_norm_fn(
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
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor | tuple[Tensor | None, ...]:
    """`layer_norm_fn` without subtracting the mean."""
    return layer_norm_fn(
        x,
        weight,
        bias,
        residual,
        x1,
        weight1,
        bias1,
        eps,
        dropout_p,
        rowscale,
        prenorm,
        residual_in_fp32,
        True,
        return_dropout_mask,
    )


def layer_norm_linear_fn(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """A linear layer on the norm of x + residual: (..., dim) -> (..., features); with the sum where prenorm."""
    normed: Any = layer_norm_fn(
        x,
        norm_weight,
        norm_bias,
        residual,
        eps=eps,
        prenorm=True,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
    )
    y, total = normed
    # As upstream, the weights follow the activations, which autocast may have made narrower.
    out = F.linear(y, linear_weight.to(y.dtype), None if linear_bias is None else linear_bias.to(y.dtype))
    return (out, total) if prenorm else out


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, with an optional residual that is added first."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.drop = nn.Dropout(dropout_p) if dropout_p > 0.0 else None
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of one."""
        nn.init.ones_(self.weight)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Tensor | tuple[Tensor | None, ...]:
        """x and residual (..., dim) -> the norm of their sum and, where prenorm, the sum."""
        dropout_p = self.drop.p if self.drop is not None and self.training else 0.0
        return rms_norm_fn(
            x,
            self.weight,
            None,
            residual=residual,
            eps=self.eps,
            dropout_p=dropout_p,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )
