"""The module of `mamba_ssm.modules.mamba2`, with its signature and parameter names, on scanlab.

Source: state-spaces/mamba@e9594ce, mamba_ssm/modules/mamba2.py.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanlab.contract.base import inverse_softplus
from scanlab.errors import ProblemError, UnavailableError
from scanlab.integrations.causal_conv1d.causal_conv1d_interface import activation_of
from scanlab.integrations.mamba_ssm.modules.cached_states import CachedStates, State
from scanlab.integrations.mamba_ssm.ops.triton.layernorm_gated import RMSNorm as RMSNormGated
from scanlab.models.plain_layers import is_plain_layer
from scanlab.runtime import ops as mixer
from scanlab.runtime.ssd import ssd, ssd_update
from scanlab_kernels.ssd.problem import NO_LIMIT, Limits, SsdInputs


class Mamba2(CachedStates, nn.Module):
    """The Mamba-2 mixer: (batch, length, d_model) -> (batch, length, d_model).

    Parameters have the official names, order and initial values. `chunk_size`, `use_mem_eff_path` and
    `sequence_parallel` change nothing here.

    Args:
        d_model: Width of the model.
        d_state: States of a channel.
        d_conv: Width of the convolution.
        conv_init: Bound of the convolution's initial weights; those of nn.Conv1d where None.
        expand: Width of the mixer over that of the model.
        headdim: Channels of a head.
        d_ssm: Channels that are scanned; the others are a gated MLP. All of them where None.
        ngroups: Groups of heads that share B and C.
        A_init_range: Bounds of the initial decay rates.
        D_has_hdim: D for each channel instead of each head.
        rmsnorm: Gate by a norm instead of in the scan.
        norm_before_gate: Normalise first and gate then.
        dt_min, dt_max, dt_init_floor: Bounds of the initial step sizes.
        dt_limit: Bounds of every step size.
        layer_idx: Index of the layer, by which an inference cache keeps its states.

    Raises:
        ProblemError: Sizes do not fit.
        UnavailableError: A process group is given: scanlab runs on one machine.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: Limits = NO_LIMIT,
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: object = None,
        sequence_parallel: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if process_group is not None:
            raise UnavailableError(
                "Mamba2 with a process_group: scanlab runs on one machine; for several install mamba_ssm."
            )
        self.d_model, self.d_state, self.d_conv, self.conv_init = d_model, d_state, d_conv, conv_init
        self.expand, self.headdim, self.ngroups = expand, headdim, ngroups
        self.d_inner = expand * d_model
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        if self.d_ssm % headdim:
            raise ProblemError(f"headdim={headdim} does not divide the {self.d_ssm} channels that are scanned.")
        self.nheads = self.d_ssm // headdim
        self.D_has_hdim, self.rmsnorm, self.norm_before_gate = D_has_hdim, rmsnorm, norm_before_gate
        self.dt_limit, self.chunk_size = dt_limit, chunk_size
        self.activation: str | None = "silu"
        self.use_mem_eff_path, self.layer_idx = use_mem_eff_path, layer_idx
        self.process_group, self.sequence_parallel = process_group, sequence_parallel
        self.world_size, self.local_rank = 1, 0
        self.act = nn.SiLU()
        linear = functools.partial(nn.Linear, bias=bias, device=device, dtype=dtype)
        projections = 2 * ngroups * d_state

        # In the order in which upstream draws, so that a seed gives the same weights.
        self.in_proj = linear(d_model, 2 * self.d_inner + projections + self.nheads)
        channels = self.d_ssm + projections
        self.conv1d = nn.Conv1d(
            *(channels, channels, d_conv),
            groups=channels,
            padding=d_conv - 1,
            bias=conv_bias,
            device=device,
            dtype=dtype,
        )
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        drawn = torch.rand(self.nheads, device=device, dtype=dtype)
        step = torch.exp(drawn * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)).clamp(min=dt_init_floor)
        self.dt_bias = without_decay(inverse_softplus(step))
        rates = torch.empty(self.nheads, dtype=torch.float32, device=device).uniform_(*A_init_range)
        self.A_log = without_decay(rates.log().to(dtype or torch.float32))
        self.D = without_decay(torch.ones(self.d_ssm if D_has_hdim else self.nheads, device=device))
        if rmsnorm:
            self.norm = RMSNormGated(
                self.d_ssm,
                eps=1e-5,
                norm_before_gate=norm_before_gate,
                group_size=self.d_ssm // ngroups,
                device=device,
                dtype=dtype,
            )
        self.out_proj = linear(self.d_inner, d_model)

    def forward(
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: Any = None,
    ) -> Tensor:
        """Return the mixer's output, in the shape of u.

        Args:
            u: (batch, length, d_model), or (batch x length, d_model) with seqlen.
            seqlen: The length, where u has no axis for it.
            seq_idx: (batch, length) int32, the sequence that a step belongs to.
            cu_seqlens: (sequences + 1,), where the sequences of a batch of one begin and end; with inference_params
                their states are kept as those of a batch.
            inference_params: Cache of a generation. The states of this layer are kept in it, and from its second call
                on it takes one step.
        """
        if inference_params is not None:
            batch = len(u) if seqlen is None else len(u) // seqlen
            batch = batch if cu_seqlens is None else len(cu_seqlens) - 1
            conv_state, ssm_state = self._get_states_from_cache(inference_params, batch)
            if inference_params.seqlen_offset > 0:
                return self.step(u, conv_state, ssm_state)[0]
            self._expect_states(conv_state, ssm_state, batch, u)
        zxbcdt = self.in_proj(u)
        if seqlen is not None:
            zxbcdt = zxbcdt.unflatten(0, (-1, seqlen))
        if inference_params is None:
            out, _ = self.mix(zxbcdt, seq_idx)
        elif cu_seqlens is None:
            out, states = self.mix(zxbcdt, seq_idx)
            self._keep(zxbcdt, states, conv_state, ssm_state)
        else:
            outs = []
            for index, (begin, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
                part = zxbcdt[:, begin:end]
                mixed, states = self.mix(part)
                self._keep(part, states, conv_state[index : index + 1], ssm_state[index : index + 1])
                outs.append(mixed)
            out = torch.cat(outs, dim=1)
        return out if seqlen is None else out.flatten(0, 1)

    def mix(
        self, zxbcdt: Tensor, seq_idx: Tensor | None = None, initial_states: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the output (batch, length, d_model) and the states after the last step.

        Args:
            zxbcdt: Output of in_proj, (batch, length, ...).
            seq_idx: (batch, length) int32, the sequence that a step belongs to.
            initial_states: (batch, heads, headdim, d_state), the states before the first step.

        Raises:
            ProblemError: seq_idx is given, and conv1d cannot keep sequences apart.
        """
        mlp_gate, mlp_input, z, xBC, dt = self._split(zxbcdt)
        x, B, C = self._by_head(self._convolved(xBC, seq_idx))
        gates = self._scan_gates()
        gate = z.unflatten(-1, (self.nheads, self.headdim)) if gates else None
        A = -torch.exp(self.A_log.float())
        inputs = SsdInputs(x, dt, A, B, C, self._skip(), gate, self.dt_bias, initial_states, seq_idx)
        y, states = ssd(inputs, dt_softplus=True, dt_limit=self.dt_limit)
        return self._projected(y.flatten(2), None if gates else z, mlp_gate, mlp_input), states

    def _convolved(self, xBC: Tensor, seq_idx: Tensor | None) -> Tensor:
        """Return the convolution of xBC (batch, length, channels), activated."""
        if is_plain_layer(self.conv1d):
            weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
            activation = activation_of(self.activation)
            return mixer.causal_conv1d(xBC.mT, weight, bias, seq_idx=seq_idx, activation=activation).mT
        if seq_idx is not None:
            raise ProblemError(
                "seq_idx is given, and conv1d has hooks or another class, which keep no sequences apart."
            )
        out: Tensor = self.conv1d(xBC.mT)[..., : xBC.shape[1]]
        return (out if self.activation is None else F.silu(out)).mT

    def _by_head(self, xBC: Tensor) -> tuple[Tensor, ...]:
        """Return x (..., heads, headdim), B and C (..., groups, state)."""
        x, B, C = xBC.split([self.d_ssm, *2 * [self.ngroups * self.d_state]], dim=-1)
        groups = (self.ngroups, self.d_state)
        return x.unflatten(-1, (self.nheads, self.headdim)), B.unflatten(-1, groups), C.unflatten(-1, groups)

    def _skip(self) -> Tensor:
        """Return D, (heads,) or (heads, headdim)."""
        return self.D.unflatten(0, (-1, self.headdim)) if self.D_has_hdim else self.D

    def _scan_gates(self) -> bool:
        """Return True where the gate comes right after the scan, which has its output in registers."""
        return not self.rmsnorm or (not self.norm_before_gate and is_plain_layer(self.norm, (RMSNormGated,)))

    def _projected(self, y: Tensor, z: Tensor | None, mlp_gate: Tensor, mlp_input: Tensor) -> Tensor:
        """Return the output of the mixer from that of the scan, and z where it is not applied yet."""
        if self.rmsnorm:
            y = self.norm(y, z)
        if mlp_gate.shape[-1]:
            y = torch.cat((F.silu(mlp_gate) * mlp_input, y), dim=-1)
        projected: Tensor = self.out_proj(y)
        return projected

    def _keep(self, zxbcdt: Tensor, states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> None:
        """Keep the states after the last step: the last inputs of the convolution, and the state of the scan."""
        xBC = self._split(zxbcdt)[3][:, -self.d_conv :].mT
        conv_state.copy_(F.pad(xBC, (self.d_conv - xBC.shape[-1], 0)))
        ssm_state.copy_(states)

    def _split(self, zxbcdt: Tensor) -> tuple[Tensor, ...]:
        """Return the gate and the input of the MLP, the gate of the scan, the input of the convolution, and dt."""
        mlp = self.d_inner - self.d_ssm
        return torch.split(zxbcdt, [mlp, mlp, self.d_ssm, self._conv_channels(), self.nheads], dim=-1)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output (batch, 1, d_model) of one token, and both states, which are updated in place.

        Args:
            hidden_states: (batch, 1, d_model).
            conv_state: (batch, d_ssm + 2 groups d_state, d_conv).
            ssm_state: (batch, heads, headdim, d_state).

        Raises:
            ProblemError: There is another number of tokens than one, or a state cannot be updated; neither was touched.
        """
        if hidden_states.shape[1] != 1:
            raise ProblemError(f"hidden_states has {hidden_states.shape[1]} tokens: a step takes one; step in a loop.")
        self._expect_states(conv_state, ssm_state, len(hidden_states), hidden_states)
        mlp_gate, mlp_input, z, xBC, dt = self._split(self.in_proj(hidden_states[:, 0]))
        if is_plain_layer(self.conv1d):
            weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
            activation = activation_of(self.activation)
            xBC = mixer.causal_conv1d_update(xBC, conv_state, weight, bias, activation=activation)
        else:
            conv_state.copy_(torch.cat((conv_state[..., 1:], xBC[..., None]), dim=-1))
            xBC = self._convolved(conv_state.mT, None)[:, -1]
        x, B, C = self._by_head(xBC)
        dt_bias: Tensor | None = self.dt_bias
        is_limited = tuple(self.dt_limit) != NO_LIMIT
        if is_limited:  # upstream's step forgets the limits
            dt, dt_bias = F.softplus(dt.float() + self.dt_bias).clamp(*self.dt_limit), None
        gates = self._scan_gates()
        gate = z.unflatten(-1, (self.nheads, self.headdim)) if gates else None
        y = ssd_update(
            ssm_state, x, dt, self.A_log, B, C, self._skip(), gate, dt_bias, dt_softplus=not is_limited
        ).flatten(1)
        out = self._projected(y, None if gates else z, mlp_gate, mlp_input)
        return out[:, None], conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> State:
        """Return zero states for a batch; shapes as in `step`."""
        conv, projection = self.conv1d.weight, self.in_proj.weight
        (batch_size, channels), ssm_shape = self._state_shapes(batch_size)
        channels_last = conv.new_zeros(batch_size, self.d_conv, channels, dtype=dtype or conv.dtype)
        return channels_last.mT, projection.new_zeros(ssm_shape, dtype=dtype or projection.dtype)

    def _state_shapes(self, batch_size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shape of conv_state but for its last axis, the kept inputs, and that of ssm_state."""
        return (batch_size, self._conv_channels()), (batch_size, self.nheads, self.headdim, self.d_state)

    def _conv_channels(self) -> int:
        """Return how many channels the convolution has: those of x, B and C."""
        return self.d_ssm + 2 * self.ngroups * self.d_state


def without_decay(values: Tensor) -> nn.Parameter:
    """Return a parameter of these values that is marked as one without weight decay."""
    parameter = nn.Parameter(values)
    parameter._no_weight_decay = True  # type: ignore[attr-defined]  # training scripts look for it
    return parameter
