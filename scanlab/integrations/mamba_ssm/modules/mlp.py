"""Gated MLP of `mamba_ssm.modules.mlp`.

Source: state-spaces/mamba@e9594ce, mamba_ssm/modules/mlp.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GatedMLP(nn.Module):
    """MLP whose hidden values are multiplied by an activated gate: (..., in_features) -> (..., out_features).

    Args:
        in_features: Width of the input.
        hidden_features: Width between the layers, rounded up to `multiple_of`; 8/3 of in_features by default.
        out_features: Width of the output; in_features by default.
        activation: Applied to the gate.
        bias: Both layers have a bias.
        multiple_of: Divisor of the hidden width.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        activation: Callable[[Tensor], Tensor] = F.silu,
        bias: bool = False,
        multiple_of: int = 128,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = int(8 * in_features / 3) if hidden_features is None else hidden_features
        hidden = -(-hidden // multiple_of) * multiple_of
        self.fc1 = nn.Linear(in_features, 2 * hidden, bias=bias, device=device, dtype=dtype)
        self.activation = activation
        self.fc2 = nn.Linear(hidden, out_features or in_features, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for x (..., in_features)."""
        values, gate = self.fc1(x).chunk(2, dim=-1)
        out: Tensor = self.fc2(values * self.activation(gate))
        return out
