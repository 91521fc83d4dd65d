"""Block of VMamba: norm, a mixer that scans the feature map in four directions, and an MLP.

Feature maps are channel-last, (batch, height, width, dim), throughout: products and norms leave them so, and the scan
reads them so.

Source: MzeroMiko/VMamba@2ed52ea, classification/models/vmamba.py, SS2Dv0, SS2Dv2 and VSSBlock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanlab.contract.base import inverse_softplus
from scanlab.models.block import DropPath
from scanlab.models.convolution import Convolution
from scanlab.models.mamba_weights import as_scanned, rates
from scanlab.models.plain_layers import is_plain_layer
from scanlab.runtime.cross_scan import cross_scan_2d
from scanlab.runtime.traced import is_traced
from scanlab_kernels.cross_scan_2d.problem import DIRECTIONS, CrossScanInputs

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4  # step sizes at initialisation


@dataclass(frozen=True)
class MixerOptions:
    """Options of the mixer, with the values of the official models.

    Args:
        state: States of each channel.
        expand: Width of the mixer relative to that of the model.
        gated: Multiply by a gate before the output projection.
        conv_bias: The depthwise convolution has a bias.
    """

    state: int = 1
    expand: float = 1.0
    gated: bool = False
    conv_bias: bool = False


def _may_overwrite(layer: nn.Module) -> bool:
    """Return True where the output of `layer` is read by its activation alone, so that no second map is needed."""
    kinds = (nn.Linear, Convolution)
    return not (torch.is_grad_enabled() or is_traced()) and is_plain_layer(layer, kinds)


class CrossScanMixer(nn.Module):
    """Mixer of a feature map (batch, height, width, dim), which it scans along rows and columns in both directions."""

    def __init__(self, dim: int, options: MixerOptions) -> None:
        super().__init__()
        inner, rank = int(options.expand * dim), math.ceil(dim / 16)
        self.gated, self.sizes = options.gated, [rank, options.state, options.state]
        self.scan: str | None = None
        # the order of these assignments is the order of the official parameters
        bound = inner**-0.5
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, sum(self.sizes), inner).uniform_(-bound, bound))
        self.A_logs = nn.Parameter(torch.arange(1.0, options.state + 1).log().repeat(DIRECTIONS * inner, 1))
        self.Ds = nn.Parameter(torch.ones(DIRECTIONS * inner))
        bound = rank**-0.5
        self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, inner, rank).uniform_(-bound, bound))
        step = torch.empty(DIRECTIONS, inner).uniform_(math.log(DT_MIN), math.log(DT_MAX)).exp_().clamp_(min=DT_FLOOR)
        self.dt_projs_bias = nn.Parameter(inverse_softplus(step))
        if not options.gated:
            self.out_norm = nn.LayerNorm(inner)
        self.in_proj = nn.Linear(dim, inner * (2 if options.gated else 1), bias=False)
        self.conv2d = Convolution(inner, inner, 3, padding=1, groups=inner, bias=options.conv_bias)
        if options.gated:
            self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the mixed map of hidden (batch, height, width, dim), in the same shape."""
        x, gate = self.in_proj(hidden).chunk(2, dim=-1) if self.gated else (self.in_proj(hidden), None)
        u = F.silu(self.conv2d(x.permute(0, 3, 1, 2)), inplace=_may_overwrite(self.conv2d))
        y = self.out_norm(self.scanned(u).permute(0, 2, 3, 1))
        out: Tensor = self.out_proj(y if gate is None else y * F.silu(gate))
        return out

    def scanned(self, u: Tensor) -> Tensor:
        """Return the scan of u (batch, inner, height, width), whose weights are chosen by u itself."""
        inner = u.shape[1]
        tokens = u.permute(0, 2, 3, 1)
        selected = F.linear(tokens, self.x_proj_weight.flatten(0, 1)).unflatten(-1, (DIRECTIONS, -1))
        low_rank, B, C = selected.split(self.sizes, dim=-1)  # (batch, height, width, direction, ...)
        inputs = CrossScanInputs(
            u,
            low_rank.permute(0, 3, 4, 1, 2),
            rates(self.A_logs, u.dtype).view(DIRECTIONS, inner, -1),
            B.permute(0, 3, 4, 1, 2),
            C.permute(0, 3, 4, 1, 2),
            as_scanned(self.Ds, u.dtype).view(DIRECTIONS, inner),
            as_scanned(self.dt_projs_bias, u.dtype),
            as_scanned(self.dt_projs_weight, u.dtype),
        )
        return cross_scan_2d(inputs, backend=self.scan)


class Mlp(nn.Module):
    """Two layers with GELU between them: (..., dim) -> (..., dim)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for x (..., dim)."""
        hidden = self.fc1(x)
        out: Tensor = self.fc2(torch.ops.aten.gelu_(hidden) if _may_overwrite(self.fc1) else F.gelu(hidden))
        return out


class CrossScanBlock(nn.Module):
    """Residual block: a mixer and, where mlp_ratio is not 0, an MLP, each behind a norm."""

    def __init__(self, dim: int, options: MixerOptions, mlp_ratio: float, drop_path_rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = CrossScanMixer(dim, options)
        self.drop_path = DropPath(drop_path_rate)
        self.mlp: Mlp | None = None
        if mlp_ratio:
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = Mlp(dim, int(mlp_ratio * dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the map after this block, for x (batch, height, width, dim)."""
        x = x + self.drop_path(self.op(self.norm(x)))
        return x if self.mlp is None else x + self.drop_path(self.mlp(self.norm2(x)))
