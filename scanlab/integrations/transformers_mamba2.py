"""Compute the Mamba-2 mixers of transformers with scanlab's ops.

Mamba2, Bamba, FalconH1, GraniteMoeHybrid, NemotronH and Zamba2 share one mixer: a projection to the gate, the input of
a short convolution and the step sizes, state-space duality, a gated norm, and a projection. FalconH1 scales the input
and the output of the first projection, and may gate after the norm, or without one.

Source: huggingface/transformers, models/{mamba2, bamba, falcon_h1, granitemoehybrid, nemotron_h, zamba2}, the forward
of the mixers, 5.16 to 5.23.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scanlab.integrations.mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn
from scanlab.integrations.transformers_cache import Memory
from scanlab.integrations.transformers_layers import decay_rates, masked, product, records_gradients
from scanlab.models.plain_layers import is_plain_layer
from scanlab.runtime.ops import causal_conv1d, causal_conv1d_update
from scanlab.runtime.ssd import ssd, ssd_update
from scanlab_kernels.ssd.problem import NO_LIMIT, SsdInputs


def mix(mixer: Any, hidden: Tensor, memory: Memory, mask: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    """Return the output of a mixer.

    Args:
        mixer: The mixer of transformers, with its weights.
        hidden: (batch, length, dim).
        memory: The past of this mixer, which is updated.
        mask: (batch, at least length), 0 at padding, or None.
        seq_idx: (batch, length), the sequence that a step belongs to, or None.

    Returns:
        The shape of hidden.
    """
    normed = _normed(mixer, *_scanned(mixer, hidden, memory, mask, seq_idx))
    return product(mixer, "out_proj", normed.to(hidden.dtype))


def _scanned(
    mixer: Any, hidden: Tensor, memory: Memory, mask: Tensor | None, seq_idx: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the output of the scan, (batch, length, dim), and the gate where it is not applied yet.

    Arguments are those of `mix`. Large temporaries are free when this returns.
    """
    length = hidden.shape[1]
    mask = None if mask is None else mask[:, -length:, None]
    seq_idx = None if seq_idx is None else seq_idx.int()
    steps = memory.scan is not None and length == 1
    recording = records_gradients(mixer, hidden)  # the ops of a single step record none
    z, xBC, dt = _projected(mixer, masked(hidden, mask))

    taps, bias = mixer.conv1d.weight[:, 0], mixer.conv1d.bias
    if steps and memory.conv is not None and not recording:
        xBC = causal_conv1d_update(xBC.mT.to(memory.conv.dtype), memory.conv, taps, bias, activation="silu").mT
    else:
        inputs = memory.extend(xBC.mT)
        is_first = inputs.shape[-1] == length
        xBC = causal_conv1d(inputs, taps, bias, seq_idx=seq_idx if is_first else None, activation="silu").mT
        xBC = xBC if is_first else xBC[:, -length:]
    projections = mixer.n_groups * mixer.ssm_state_size
    x, B, C = masked(xBC, mask).split([mixer.intermediate_size, projections, projections], dim=-1)

    heads, groups = (mixer.num_heads, -1), (mixer.n_groups, -1)
    x, B, C = x.unflatten(-1, heads), B.unflatten(-1, groups), C.unflatten(-1, groups)
    gates = _scan_gates(mixer)
    gate = z.unflatten(-1, heads) if gates else None
    if steps and not recording:
        assert memory.scan is not None
        first = (x[:, 0], dt[:, 0], mixer.A_log, B[:, 0], C[:, 0], mixer.D, None if gate is None else gate[:, 0])
        y = ssd_update(memory.scan, *first, mixer.dt_bias)[:, None]
    else:
        # a copy: the cache is overwritten in place, and gradients need the old values
        initial_state = None if memory.scan is None else memory.scan.clone()
        A = decay_rates(mixer, x.dtype)
        y, last_state = ssd(
            SsdInputs(x, dt, A, B, C, mixer.D, gate, mixer.dt_bias, initial_state, seq_idx),
            dt_softplus=True,
            dt_limit=NO_LIMIT if steps else mixer.time_step_limit,  # transformers has none for a single step
        )
        memory.keep(last_state)
    return y.flatten(2), None if gates else z


def _projected(mixer: Any, hidden: Tensor) -> tuple[Tensor, ...]:
    """Return the gate, the input of the convolution, and the step sizes, each (batch, length, ...)."""
    scales = hasattr(mixer, "mup_vector")
    projected = product(mixer, "in_proj", hidden * mixer.ssm_in_multiplier if scales else hidden)
    if scales:
        projected = projected * mixer.mup_vector
    sizes = [mixer.intermediate_size, mixer.conv1d.out_channels, mixer.num_heads]
    return torch.split(projected, sizes, dim=-1)


def _is_plain_norm(mixer: Any) -> bool:
    """Return True where calling the gated norm is nothing but the computation that transformers defines."""
    norm = type(mixer.norm)
    own = norm.__module__ == type(mixer).__module__ and norm.__name__.endswith("RMSNormGated")
    return own and is_plain_layer(mixer.norm, (norm,))


def _norms_before_gate(mixer: Any) -> bool:
    return getattr(mixer.norm, "norm_before_gate", False)


def _scan_gates(mixer: Any) -> bool:
    """Return True where the gate comes right after the scan, which has its output in registers."""
    return not _has_norm(mixer) or (_is_plain_norm(mixer) and not _norms_before_gate(mixer))


def _has_norm(mixer: Any) -> bool:
    return getattr(mixer, "mamba_rms_norm", True)


def _normed(mixer: Any, y: Tensor, gate: Tensor | None) -> Tensor:
    """Return the scan's output y, normalised, and gated where a gate is left to apply; (batch, length, dim)."""
    norm = mixer.norm
    if not _has_norm(mixer):
        return y
    if not _is_plain_norm(mixer):
        called: Tensor = norm(y, gate)
        return called
    group_size = norm.weight.numel() // mixer.n_groups
    return rmsnorm_fn(y, norm.weight, None, gate, norm.variance_epsilon, group_size, _norms_before_gate(mixer))
