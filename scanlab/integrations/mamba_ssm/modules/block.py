"""Residual block of `mamba_ssm.modules.block`.

Source: state-spaces/mamba@e9594ce, mamba_ssm/modules/block.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn


class Block(nn.Module):
    """Add, normalise, mix; what is mixed is added by the next block."""

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        self.residual_in_fp32 = residual_in_fp32
        self.fused_add_norm = fused_add_norm
        self.mixer = mixer_cls(dim)
        self.norm = norm_cls(dim)
        if fused_add_norm and not isinstance(self.norm, (nn.LayerNorm, RMSNorm)):
            raise ProblemError(f"fused_add_norm with {type(self.norm).__name__}: must be a LayerNorm or an RMSNorm.")

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, inference_params: Any = None
    ) -> tuple[Tensor, Tensor]:
        """hidden_states and residual (batch, length, dim), residual None in the first block -> the next of both."""
        norm: Any = self.norm
        if self.fused_add_norm:
            normed: Any = layer_norm_fn(
                hidden_states,
                norm.weight,
                norm.bias,
                residual=residual,
                eps=norm.eps,
                prenorm=True,
                residual_in_fp32=self.residual_in_fp32,
                is_rms_norm=isinstance(norm, RMSNorm),
            )
            hidden_states, total = normed
        else:
            total = hidden_states if residual is None else hidden_states + residual
            hidden_states = norm(total.to(norm.weight.dtype))
            total = total.float() if self.residual_in_fp32 else total
        return self.mixer(hidden_states, inference_params=inference_params), total

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the states that the mixer allocates."""
        states: tuple[Tensor, Tensor] = self.mixer.allocate_inference_cache(
            batch_size, max_seqlen, dtype=dtype, **kwargs
        )  # type: ignore[operator]
        return states
