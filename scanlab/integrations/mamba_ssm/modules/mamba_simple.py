"""Mamba mixer of `mamba_ssm.modules.mamba_simple` and of its vision forks, with their parameter names.

Source: state-spaces/mamba@e9594ce, hustvl/Vim@dd0358a, OpenGVLab/VideoMamba@225c73d
and ge-xing/SegMamba@def8068, mamba_ssm/modules/mamba_simple.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanlab.contract.base import inverse_softplus
from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm.modules import block
from scanlab.integrations.mamba_ssm.modules.cached_states import CachedStates, State
from scanlab.integrations.mamba_ssm.ops.selective_scan_interface import say_who_serves
from scanlab.integrations.notices import warn_once
from scanlab.models import composed_mixer
from scanlab.models.mamba_block import BIMAMBA_TYPES
from scanlab.models.mamba_weights import Mixing, taps
from scanlab.models.plain_layers import is_plain_layer
from scanlab.runtime import dispatch
from scanlab.runtime import ops as mixer
from scanlab.runtime.ops import WeightCache

KINDS = (*BIMAMBA_TYPES, "v3")


FORWARD_ONLY = (
    "a Mamba of bimamba_type v1, v2 or v3 runs forward only, as upstream does with use_fast_path=False or with an"
    " inference cache; leave these out for both directions."
)


class Mamba(CachedStates, Mixing):
    """Mamba mixer: (batch, length, d_model) -> (batch, length, d_model).

    Parameters have the official names, order and initial values. Layers with hooks, adapters and any other layer that
    does more than multiply with its weight are called.

    Args:
        use_fast_path: False calls the layers one by one, in the forward direction only.
        layer_idx: Index of the layer, by which an inference cache keeps its states.
        bimamba_type: "none" (or None) scans forward; "v1" in reverse too, by a second A; "v2" by weights of its own;
            "v3" adds a third scan of the steps of `nslices` slices in turn (SegMamba).
        if_divide_out: Halve the sum of the directions of v2; `if_devide_out` is its older spelling.
        init_layer_scale: Initial factor of every output channel, none where None.
        bimamba: VideoMamba's name of bimamba_type "v2".
        nslices: Slices of v3; the length must be a multiple.

    Raises:
        ProblemError: An argument has a value that makes no mixer.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bimamba_type: str | None = "none",
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
        if_devide_out: bool = False,
        bimamba: bool = False,
        nslices: int = 5,
    ) -> None:
        super().__init__()
        bimamba_type = bimamba_type or "none"
        bimamba_type = "v2" if bimamba and bimamba_type == "none" else bimamba_type
        if bimamba_type not in KINDS:
            raise ProblemError(f"bimamba_type={bimamba_type!r}: must be one of {', '.join(KINDS)}.")
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.bimamba_type, self.nslices = bimamba_type, nslices
        self.if_divide_out, self.init_layer_scale = if_divide_out or if_devide_out, init_layer_scale
        self.activation, self.act = "silu", nn.SiLU()
        linear = functools.partial(nn.Linear, device=device, dtype=dtype)

        def convolution() -> nn.Conv1d:
            return nn.Conv1d(
                inner, inner, d_conv, groups=inner, padding=d_conv - 1, bias=conv_bias, device=device, dtype=dtype
            )

        def in_float32(values: Tensor) -> nn.Parameter:
            parameter = nn.Parameter(values)
            parameter._no_weight_decay = True  # type: ignore[attr-defined]  # training scripts look for it
            return parameter

        def rates() -> nn.Parameter:
            every = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
            return in_float32(every.log().repeat(inner, 1))

        # In the order in which upstream draws, so that a seed gives the same weights.
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(init_layer_scale * torch.ones(d_model, device=device))
        self.in_proj = linear(d_model, 2 * inner, bias=bias)
        self.conv1d = convolution()
        self.x_proj = linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = linear(self.dt_rank, inner)
        self._draw_steps(dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        self.A_log = rates()
        self.D = in_float32(torch.ones(inner, device=device))
        if bimamba_type != "none":
            self.A_b_log = rates()
        for suffix in {"v2": ("_b",), "v3": ("_b", "_s")}.get(bimamba_type, ()):
            if suffix == "_s":
                self.A_s_log = rates()
            self.add_module(f"conv1d{suffix}", convolution())
            self.add_module(f"x_proj{suffix}", linear(inner, self.dt_rank + 2 * d_state, bias=False))
            self.add_module(f"dt_proj{suffix}", linear(self.dt_rank, inner))
            self.register_parameter(f"D{suffix}", in_float32(torch.ones(inner, device=device)))
        self.out_proj = linear(inner, d_model, bias=bias)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled mixer; attributes that the official package or its forks do not store get their defaults.

        VideoMamba stores `bimamba`, older releases of Vim `if_devide_out`.
        """
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        stored = self.__dict__
        stored.setdefault("nslices", 5)
        stored.setdefault("bimamba_type", "v2" if stored.get("bimamba") else "none")
        stored.setdefault("if_divide_out", stored.get("if_devide_out", False))
        stored.setdefault("init_layer_scale", None)
        stored.setdefault("_derived", WeightCache())
        if "gamma" not in self._parameters:
            self.register_parameter("gamma", None)

    @torch.no_grad()
    def _draw_steps(self, low: float, high: float, kind: str, scale: float, floor: float) -> None:
        """Initialise dt_proj so that step sizes lie between low and high: its bias is their inverse softplus."""
        weight, bias = self.dt_proj.weight, self.dt_proj.bias
        bound = self.dt_rank**-0.5 * scale
        if kind == "constant":
            nn.init.constant_(weight, bound)
        elif kind == "random":
            nn.init.uniform_(weight, -bound, bound)
        else:
            raise NotImplementedError(f"dt_init={kind!r}: must be 'random' or 'constant'.")
        drawn = torch.rand(self.d_inner, device=bias.device, dtype=bias.dtype)
        step = torch.exp(drawn * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=floor)
        bias.copy_(inverse_softplus(step))
        bias._no_reinit = True  # type: ignore[attr-defined]  # initialisers of whole models look for it

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """Return the mixed tokens, in the shape of hidden_states.

        Args:
            hidden_states: (batch, length, d_model).
            inference_params: Cache of a generation. The states of this layer are kept in it, and from its second call
                on it takes one step. As upstream, such calls run forward only.
        """
        states = None
        if inference_params is not None:
            states = self._get_states_from_cache(inference_params, hidden_states.shape[0])
            if inference_params.seqlen_offset > 0:
                return self.step(hidden_states, *states)[0]
            self._expect_states(*states, len(hidden_states), hidden_states)
        bidirectional = self.bimamba_type != "none"
        if bidirectional and (states is not None or not self.use_fast_path):
            warn_once(FORWARD_ONLY)
            bidirectional = False
        halves = bidirectional and self.bimamba_type == "v2" and self.if_divide_out
        if not (self.use_fast_path and composed_mixer.has_plain_layers(self)):
            slices = self.nslices if bidirectional and self.bimamba_type == "v3" else None
            scanned = composed_mixer.scan_directions(
                self, hidden_states, dispatch.scan, bidirectional=bidirectional, slices=slices
            )
            if states is not None:
                self._keep_states(states, scanned.x, scanned.last_state)
            out = composed_mixer.project(self, scanned.y, halves=halves)
        elif states is None:
            out = self.mix(hidden_states, dispatch.scan, bidirectional=bidirectional, halves=halves)
        else:
            weights = self.weights()
            y, last_state = dispatch.scan(*weights.scan_inputs(hidden_states, bidirectional))
            into = weights.forward_front.into
            x = mixer.linear(hidden_states[:, -self.d_conv :], into.x, into.x_bias)
            self._keep_states(states, x, last_state)
            out = weights.mixed(y, halves=False)
        say_who_serves()
        return out

    def _keep_states(self, states: State, x: Tensor, last_state: Tensor) -> None:
        """Store the last inputs of the convolution, from x (batch, steps, d_inner), and the last state of the scan."""
        conv_state, ssm_state = states
        conv_state.copy_(F.pad(x[:, -self.d_conv :].mT, (max(0, self.d_conv - x.shape[1]), 0)))
        ssm_state.copy_(last_state)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output for one token and both states, which are updated in place.

        Args:
            hidden_states: (batch, 1, d_model).
            conv_state: (batch, d_inner, d_conv), newest last.
            ssm_state: (batch, d_inner, d_state).

        Raises:
            ProblemError: hidden_states has more than one token, or a state cannot be updated; neither was touched.
        """
        if hidden_states.shape[1] != 1:
            raise ProblemError(f"hidden_states has {hidden_states.shape[1]} tokens: a step takes one; step in a loop.")
        hidden = hidden_states[:, 0]
        advance = self._fused_step if self._is_fused(hidden, conv_state) else self._composed_step
        return advance(hidden, conv_state, ssm_state)[:, None], conv_state, ssm_state

    def _is_fused(self, hidden: Tensor, conv_state: Tensor) -> bool:
        """Return True where a step is the product with plain weights in one dtype, which the fused op computes."""
        return (
            self.use_fast_path
            and not torch.is_autocast_enabled("cpu")
            and composed_mixer.has_plain_layers(self)
            and hidden.dtype == conv_state.dtype == self.x_proj.weight.dtype
        )

    def _fused_step(self, hidden: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
        """Return the output (batch, d_model) for hidden (batch, d_model) by the op that fuses a step."""
        weights = (self.x_proj.weight, self.dt_proj.weight, self.dt_proj.bias, self.A_log, self.D)
        return self.weights().steps.step(
            hidden, self.in_proj.bias, self.out_proj.bias, conv_state, ssm_state, *taps(self.conv1d), *weights
        )

    def _composed_step(self, hidden: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
        """Return the same from one call of each layer, in the dtypes that the layers and autocast choose."""
        self._expect_states(conv_state, ssm_state, len(hidden), hidden)
        x, z = self.in_proj(hidden).chunk(2, dim=-1)
        x = x.to(conv_state.dtype)
        if is_plain_layer(self.conv1d):
            u = mixer.causal_conv1d_update(x, conv_state, *taps(self.conv1d), activation="silu")
        else:
            conv_state.copy_(torch.cat((conv_state[..., 1:], x[..., None]), dim=-1))
            u = composed_mixer.convolve(self.conv1d, conv_state.mT)[:, -1]
        low_rank, B, C = self.x_proj(u.to(hidden.dtype)).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        if is_plain_layer(self.dt_proj):  # the bias is added in float32, before the softplus
            delta, delta_bias = F.linear(low_rank, self.dt_proj.weight), self.dt_proj.bias
        else:
            delta, delta_bias = self.dt_proj(low_rank), None
        y = mixer.selective_state_update(
            ssm_state, u, delta, self.A_log, B, C, self.D, z, delta_bias, dt_softplus=True, log_A=True
        )
        projected: Tensor = self.out_proj(y.to(hidden.dtype))
        return projected

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> State:
        """Return zero states: conv_state (batch, d_inner, d_conv) and ssm_state (batch, d_inner, d_state)."""
        conv, dt = (next(layer.parameters()) for layer in (self.conv1d, self.dt_proj))
        conv_shape, ssm_shape = self._state_shapes(batch_size)
        return (
            conv.new_zeros(*conv_shape, self.d_conv, dtype=dtype or conv.dtype),
            dt.new_zeros(ssm_shape, dtype=dtype or dt.dtype),
        )

    def _state_shapes(self, batch_size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shape of conv_state but for its last axis, the kept inputs, and that of ssm_state."""
        channels = (batch_size, self.d_inner)
        return channels, (*channels, self.d_state)


class Block(block.Block):
    """Residual block with the arguments of mamba_ssm 1.x, where it has no MLP and is found in this module."""

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__(dim, mixer_cls, nn.Identity, norm_cls, fused_add_norm, residual_in_fp32)
