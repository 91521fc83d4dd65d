"""Fused norms of `mamba_ssm.ops.triton.layer_norm`, with their signatures.

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
from scanlab_kernels.checks import expect_dense_real, expect_one_device, expect_projection


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
    """Return the norm of dropout(rowscale x) + dropout(x1) + residual. Differentiable.

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
        residual_in_fp32: Without a residual, return the sum in float32 instead of the dtype of x.
        is_rms_norm: Do not subtract the mean.
        return_dropout_mask: Return the elements that were kept too.

    Returns:
        out in the dtype of x. Where asked for, a tuple: out, the second norm, the sum in the dtype of the residual, and
        the masks of x and x1, None where nothing was dropped.

    Raises:
        ProblemError: Shapes or dtypes do not fit.
    """
    if x1 is not None and rowscale is not None:
        raise ProblemError("x1 and rowscale are given: rows are scaled only where there is no x1; leave one out.")
    if x1 is not None and x1.shape != x.shape:
        raise ProblemError(f"x1 is {tuple(x1.shape)}: must be {tuple(x.shape)}, as x.")
    if not x.is_floating_point():
        raise ProblemError(f"x is {x.dtype}: must be floating, because the result has its dtype.")
    expect_dense_real(residual=residual, x1=x1, rowscale=rowscale)
    branch = x if rowscale is None else x * rowscale.reshape(x.shape[:-1])[..., None].to(x.dtype)
    branch, mask = _dropped(branch, dropout_p)
    mask1 = None
    if x1 is not None:
        other, mask1 = _dropped(x1, dropout_p)
        branch = branch + other
    total_dtype = residual.dtype if residual is not None else torch.float32 if residual_in_fp32 else x.dtype
    if residual is not None and residual.dtype != branch.dtype:
        residual = residual.to(torch.promote_types(branch.dtype, torch.float32))
    norm = functools.partial(
        add_norm, eps=eps, kind="rms" if is_rms_norm else "layer", residual_in_fp32=total_dtype != branch.dtype
    )
    out, total = norm(branch, residual, weight, bias)
    out = out.to(x.dtype)  # the sum is wider where x1 is
    outs: list[Tensor | None] = [out]
    if weight1 is not None:
        outs.append(norm(branch, residual, weight1, bias1)[0].to(x.dtype))
    if prenorm:
        outs.append(total.to(total_dtype))
    if return_dropout_mask:
        outs += [mask, mask1]
    return out if len(outs) == 1 else tuple(outs)


def _dropped(x: Tensor, probability: float) -> tuple[Tensor, Tensor | None]:
    """Return x with elements dropped and the others scaled up, and the mask of those that were kept."""
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
    """Return `layer_norm_fn` without subtracting the mean."""
    given = (residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm, residual_in_fp32)
    return layer_norm_fn(x, weight, bias, *given, True, return_dropout_mask)


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
    """Return a linear layer of the norm of x + residual, (..., features); where prenorm, the sum too."""
    expect_one_device(x=x, linear_weight=linear_weight, linear_bias=linear_bias)
    expect_projection("linear_weight", linear_weight)
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
    expect_dense_real(linear_weight=linear_weight, linear_bias=linear_bias)
    # As upstream, the weights follow the activations, which autocast may have made narrower.
    out = F.linear(y, linear_weight.to(y.dtype), None if linear_bias is None else linear_bias.to(y.dtype))
    return (out, total) if prenorm else out


def rms_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-6, is_rms_norm: bool = True
) -> Tensor:
    """Return the norm of x (..., dim), by the name that `mamba_ssm.ops.selective_scan_interface` has for it."""
    out = layer_norm_fn(x, weight, bias, eps=eps, is_rms_norm=is_rms_norm)
    assert isinstance(out, Tensor)
    return out


class LayerNormFn:
    """Upstream's autograd function by its name: `apply` is `layer_norm_fn`."""

    apply = staticmethod(layer_norm_fn)


class LayerNormLinearFn:
    """Upstream's autograd function by its name: `apply` is `layer_norm_linear_fn`."""

    apply = staticmethod(layer_norm_linear_fn)


class RMSNorm(nn.Module):
    """RMSNorm over the last axis, of the sum with an optional residual."""

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

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled norm; mamba_ssm 1.x stores no dropout."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if "drop" not in self._modules:
            self.__dict__.setdefault("drop", None)

    def reset_parameters(self) -> None:
        """Set the weights to one."""
        nn.init.ones_(self.weight)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Tensor | tuple[Tensor | None, ...]:
        """Return the norm of x + residual, both (..., dim); where prenorm, the sum too."""
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
