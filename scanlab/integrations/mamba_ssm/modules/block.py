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

Cache = tuple[Tensor, Tensor | None]  # convolution and scan of a Mamba layer, attention and convolution of an MHA


class Block(nn.Module):
    """Residual block that adds, normalises and mixes; the next block adds the output of this one.

    Args:
        dim: Width of the model.
        mixer_cls: Called with dim; makes the mixer.
        mlp_cls: Called with dim; makes an MLP that follows the mixer behind a norm of its own. nn.Identity means none.
        norm_cls: Called with dim; makes the norms.
        fused_add_norm: Add and normalise in one op, before the sum is rounded.
        residual_in_fp32: Return the residual in float32.

    Raises:
        ProblemError: fused_add_norm with a norm that the op does not compute.
    """

    mlp: nn.Module | None
    layer_idx: int | None

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        mlp_cls: Callable[[int], nn.Module] = nn.Identity,
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        self.residual_in_fp32 = residual_in_fp32
        self.fused_add_norm = fused_add_norm
        self.norm = norm_cls(dim)
        self.mixer = mixer_cls(dim)
        if mlp_cls is nn.Identity:
            self.mlp = None
        else:
            self.norm2 = norm_cls(dim)
            self.mlp = mlp_cls(dim)
        if fused_add_norm and not isinstance(self.norm, (nn.LayerNorm, RMSNorm)):
            raise ProblemError(f"fused_add_norm with {type(self.norm).__name__}: must be a LayerNorm or an RMSNorm.")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled block; mamba_ssm 1.x stores no MLP."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if "mlp" not in self._modules:
            self.__dict__.setdefault("mlp", None)

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        inference_params: Any = None,
        **mixer_kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return the hidden states and the residual for the next block.

        Args:
            hidden_states: (batch, length, dim).
            residual: The same shape; None in the first block.
            inference_params: Cache of a generation, passed to the mixer.
            mixer_kwargs: Passed to the mixer.
        """
        normed, total = self._add_norm(hidden_states, residual, self.norm)
        hidden_states = self.mixer(normed, inference_params=inference_params, **mixer_kwargs)
        if self.mlp is not None:
            normed, total = self._add_norm(hidden_states, total, self.norm2)
            hidden_states = self.mlp(normed)
        return hidden_states, total

    def _add_norm(self, hidden: Tensor, residual: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
        """Return the normalised sum of hidden and residual, and the sum."""
        if self.fused_add_norm:
            normed: Any = layer_norm_fn(
                hidden,
                norm.weight,
                norm.bias,
                residual=residual,
                eps=norm.eps,
                prenorm=True,
                residual_in_fp32=self.residual_in_fp32,
                is_rms_norm=isinstance(norm, RMSNorm),
            )
            out, total = normed
            return out, total
        total = hidden if residual is None else hidden + residual
        return norm(total.to(norm.weight.dtype)), total.float() if self.residual_in_fp32 else total

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Cache:
        """Return the states that the mixer allocates."""
        mixer: Any = self.mixer
        states: Cache = mixer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)
        return states
