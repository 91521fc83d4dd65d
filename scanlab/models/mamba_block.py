"""The mixer of a Vision Mamba block: projections, a short convolution, and the selective scan in one or two directions.

Source: hustvl/Vim@dd0358a, mamba-1p1p1/mamba_ssm/modules/mamba_simple.py, Mamba.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from scanlab.contract.base import inverse_softplus
from scanlab.errors import ProblemError
from scanlab.models import composed_mixer
from scanlab.models.mamba_weights import Mixing
from scanlab_kernels.mamba_blocks.native import BoundBlock, NormParts

if TYPE_CHECKING:
    from scanlab.runtime.dispatch import Scan

# kept in at least float32 when the model's weights are cast, as officially
RECURRENCE = ("A_log", "A_b_log", "D", "D_b")
BIMAMBA_TYPES = ("v2", "v1", "none")


@dataclass(frozen=True, kw_only=True)
class MixerOptions:
    """Options of the official `ssm_cfg`, under the official names and defaults.

    `use_fast_path` changes nothing here. In the official code its False selects a path that silently drops
    the reverse direction; here there is one path, and it always scans both.
    """

    d_conv: int = 4
    expand: float = 2
    dt_rank: int | Literal["auto"] = "auto"
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_init: Literal["random", "constant"] = "random"
    dt_scale: float = 1.0
    dt_init_floor: float = 1e-4
    conv_bias: bool = True
    bias: bool = False
    use_fast_path: bool = True

    def __post_init__(self) -> None:
        if self.dt_init not in ("random", "constant"):
            raise ProblemError(f"ssm_cfg dt_init={self.dt_init!r}: must be 'random' or 'constant'.")

    @classmethod
    def of(cls, ssm_cfg: Mapping[str, object] | None) -> MixerOptions:
        """Return the options in `ssm_cfg`; raises ProblemError on an unknown name."""
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(ssm_cfg or ()) - set(names))
        if unknown:
            raise ProblemError(
                f"ssm_cfg holds {', '.join(unknown)}: it takes {', '.join(names)};"
                " d_state, bimamba_type and the like are arguments of VisionMamba itself."
            )
        return cls(**(ssm_cfg or {}))  # type: ignore[arg-type]  # the names were checked, the values are the caller's


class Mixer(Mixing):
    """Mixes tokens along the sequence: (batch, length, dim) -> (batch, length, dim).

    bimamba_type v2 has a second set of weights for the reverse direction (the names with `_b`); v1 shares
    all but A; none scans forward only. Only v2 halves the sum of its two directions, where `divide_out`.
    `residual_scale` scales the initial output weights, by less in deeper models.
    """

    def __init__(
        self,
        dim: int,
        *,
        state: int,
        bimamba_type: str,
        divide_out: bool,
        layer_scale: float | None,
        options: MixerOptions,
        residual_scale: float = 1.0,
    ) -> None:
        super().__init__()
        inner = int(options.expand * dim)
        self.rank = math.ceil(dim / 16) if options.dt_rank == "auto" else options.dt_rank
        self.halves = bimamba_type == "v2" and divide_out
        self.bimamba_type = bimamba_type

        def convolution() -> nn.Conv1d:
            return nn.Conv1d(
                inner, inner, options.d_conv, groups=inner, padding=options.d_conv - 1, bias=options.conv_bias
            )

        def recurrence() -> tuple[nn.Parameter, nn.Parameter]:
            rates = torch.arange(1, state + 1, dtype=torch.float32)
            return nn.Parameter(rates.log().repeat(inner, 1)), nn.Parameter(torch.ones(inner))

        # the order of these assignments is the order of the official state_dict
        if layer_scale is not None:
            self.gamma = nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.A_log, self.D = recurrence()
        if bimamba_type == "v2":
            self.A_b_log, self.D_b = recurrence()
        elif bimamba_type == "v1":
            self.A_b_log, _ = recurrence()
        self.in_proj = nn.Linear(dim, 2 * inner, bias=options.bias)
        self.conv1d = convolution()
        self.x_proj = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        if bimamba_type == "v2":
            self.conv1d_b = convolution()
            self.x_proj_b = nn.Linear(inner, self.rank + 2 * state, bias=False)
            self.dt_proj_b = nn.Linear(self.rank, inner)
        self.out_proj = nn.Linear(inner, dim, bias=options.bias)
        self._initialise(options, residual_scale)

    @torch.no_grad()
    def _initialise(self, options: MixerOptions, residual_scale: float) -> None:
        """Initialise the parameters that differ from torch's own modules.

        The forward step sizes start between dt_min and dt_max. The reverse ones start at softplus(0) = 0.69:
        the official code does not initialise them, and the released weights were trained from there.
        """
        bound = self.rank**-0.5 * options.dt_scale
        if options.dt_init == "constant":
            nn.init.constant_(self.dt_proj.weight, bound)
        else:
            nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        low, high = math.log(options.dt_min), math.log(options.dt_max)
        step = torch.empty_like(self.dt_proj.bias).uniform_(low, high).exp_().clamp_(min=options.dt_init_floor)
        self.dt_proj.bias.copy_(inverse_softplus(step))
        if self.bimamba_type == "v2":
            nn.init.zeros_(self.dt_proj_b.bias)
        for projection in (self.in_proj, self.out_proj):
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        self.out_proj.weight.mul_(residual_scale)

    def forward(self, hidden: Tensor, scan: Scan) -> Tensor:
        """Return the mixed tokens of hidden (batch, length, dim), the same shape, with the recurrence by `scan`."""
        mix = self.mix if composed_mixer.has_plain_layers(self) else functools.partial(composed_mixer.mix, self)
        return mix(hidden, scan, bidirectional=self.bimamba_type != "none", halves=self.halves)

    def bound(self, hidden: Tensor, kind: object, norm: NormParts) -> BoundBlock | None:
        """Return the mixer after a norm as the native op of whole blocks runs them; None where they must be called.

        Args:
            hidden: Input of the norm, (batch, length, dim).
            kind: Kind of that input, see `input_kind`.
            norm: The norm.
        """
        return self.weights().bind(kind, norm, hidden, bidirectional=self.bimamba_type != "none", halves=self.halves)
