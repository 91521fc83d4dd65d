"""The module of `mamba_ssm.modules.mamba2_simple`, with its signature and parameter names, on scanlab.

Source: state-spaces/mamba@e9594ce, mamba_ssm/modules/mamba2_simple.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scanlab.integrations.mamba_ssm.modules.mamba2 import Mamba2, without_decay
from scanlab_kernels.ssd.problem import NO_LIMIT, Limits


class Mamba2Simple(Mamba2):
    """`Mamba2` without a cache for inference: (batch, length, d_model) -> (batch, length, d_model).

    Args:
        learnable_init_states: The state before the first step is a parameter, zero at first.
        activation: "silu" or "swish", or None for none.
        deterministic: Changes nothing here: all results are reproducible.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 128,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: Limits = NO_LIMIT,
        learnable_init_states: bool = False,
        activation: str | None = "swish",
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        deterministic: bool | None = None,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            d_model,
            d_state,
            d_conv,
            conv_init,
            expand,
            headdim,
            ngroups=ngroups,
            A_init_range=A_init_range,
            dt_min=dt_min,
            dt_max=dt_max,
            dt_init_floor=dt_init_floor,
            dt_limit=dt_limit,
            bias=bias,
            conv_bias=conv_bias,
            chunk_size=chunk_size,
            use_mem_eff_path=use_mem_eff_path,
            layer_idx=layer_idx,
            device=device,
            dtype=dtype,
        )
        self.activation, self.deterministic = activation, deterministic
        self.learnable_init_states = learnable_init_states
        if learnable_init_states:
            zeros = torch.zeros(self.nheads, headdim, d_state, device=device, dtype=dtype)
            self.init_states: nn.Parameter = without_decay(zeros)

    def forward(self, u: Tensor, seq_idx: Tensor | None = None) -> Tensor:  # type: ignore[override]  # as upstream
        """Return the mixer's output, in the shape of u (batch, length, d_model); seq_idx (batch, length) int32."""
        initial_states = self.init_states.expand(len(u), -1, -1, -1) if self.learnable_init_states else None
        return self.mix(self.in_proj(u), seq_idx, initial_states)[0]
