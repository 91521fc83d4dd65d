"""Gated norms of `mamba_ssm.ops.triton.layernorm_gated`, with their signatures, in PyTorch.

Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/triton/layernorm_gated.py.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanlab.errors import ProblemError
from scanlab.runtime.ops import add_norm, in_torch
from scanlab_kernels.checks import expect


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """Return norm(x) silu(z), or norm(x silu(z)) where not norm_before_gate. Differentiable.

    Computed in at least float32.

    Args:
        x: (..., dim).
        weight: (dim,).
        bias: (dim,).
        z: The shape of x; no gate where None.
        eps: Added to the variance.
        group_size: Adjacent channels that have statistics of their own; all where None.
        norm_before_gate: Normalise before the gate is applied.
        is_rms_norm: Do not subtract the mean.

    Returns:
        The shape and dtype of x.
    """
    expect("weight", weight, (x.shape[-1],), x)
    if bias is not None:
        expect("bias", bias, (x.shape[-1],), x)
    if z is not None and (z.shape != x.shape or z.is_complex()):
        raise ProblemError(f"z is {z.dtype} {tuple(z.shape)}: must be real numbers {tuple(x.shape)}, as x.")
    is_whole = group_size in (None, x.shape[-1])
    wide = x if is_whole and z is None else x.to(torch.promote_types(x.dtype, torch.float32))
    gate = None if z is None else F.silu(z.to(wide.dtype))
    if gate is not None and not norm_before_gate:
        wide = wide * gate
    kind: Literal["rms", "layer"] = "rms" if is_rms_norm else "layer"
    if is_whole:
        out, _ = add_norm(wide, None, weight, bias, eps=eps, kind=kind)
    else:
        grouped = wide.unflatten(-1, (-1, group_size))
        ones = wide.new_ones(grouped.shape[-1])
        out = add_norm(grouped, None, ones, eps=eps, kind=kind)[0].flatten(-2) * weight
        if bias is not None:
            out = out + bias
    if gate is not None and norm_before_gate:
        out = out * gate
    return out.to(x.dtype)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """Return `layernorm_fn` without subtracting the mean."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, True)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    upcast: bool = True,
) -> Tensor:
    """Return `rmsnorm_fn` in plain PyTorch, in at least float32 whatever `upcast` says."""
    with in_torch():
        return rmsnorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate)


class LayerNormFn:
    """Upstream's autograd function by its name: `apply` is `layernorm_fn`."""

    apply = staticmethod(layernorm_fn)


class RMSNorm(nn.Module):
    """Gated RMSNorm with its weight."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.group_size = group_size
        self.norm_before_gate = norm_before_gate
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        """Set the weight to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Return x (..., dim) normalised and gated by z, in the shape and dtype of x."""
        return rmsnorm_fn(x, self.weight, None, z, self.eps, self.group_size, self.norm_before_gate)


class LayerNorm(RMSNorm):
    """Gated LayerNorm with its weight and bias."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, eps, group_size, norm_before_gate, device, dtype)
        self.bias = nn.Parameter(torch.zeros(hidden_size, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set the weight to one, and the bias to zero."""
        super().reset_parameters()
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Return x (..., dim) normalised and gated by z, in the shape and dtype of x."""
        return layernorm_fn(x, self.weight, self.bias, z, self.eps, self.group_size, self.norm_before_gate)
