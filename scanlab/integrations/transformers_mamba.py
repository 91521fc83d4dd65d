"""Compute the Mamba-1 mixers of transformers (Mamba, FalconMamba, Jamba, Zamba) with scanlab's ops.

All share one mixer: a gated projection, a short convolution, projections of step sizes, B and C, and the selective
scan. A sequence goes through the scan that `scanlab.runtime.dispatch` decides on, a single token through the mixer's
step in C++. Weights, caches, masks and gradients stay those of transformers.

Source: huggingface/transformers, models/{mamba, falcon_mamba, jamba, zamba}, the forward of the mixers, 4.48 to 5.23.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.problem import ScanInputs
from scanlab.integrations.transformers_cache import Memory
from scanlab.integrations.transformers_layers import (
    decay_rates,
    masked,
    prepacked,
    product,
    records_gradients,
    step_projections,
)
from scanlab.models.mamba_weights import as_scanned
from scanlab.models.plain_layers import is_plain_layer
from scanlab.runtime.dispatch import scan
from scanlab.runtime.ops import causal_conv1d, causal_conv1d_update, linear, selective_state_update
from scanlab.runtime.promotion import promoted_scan


def mix(mixer: Any, hidden: Tensor, memory: Memory, mask: Tensor | None, masks_hidden: bool) -> Tensor:
    """Return the output of a mixer.

    Args:
        mixer: The mixer of transformers, with its weights.
        hidden: (batch, length, dim).
        memory: The past of this mixer, which is updated.
        mask: (batch, at least length), 0 at padding, or None.
        masks_hidden: Mask the input of the projection, as newer versions do, instead of that of the convolution.

    Returns:
        The shape of hidden.
    """
    batch, length, _ = hidden.shape
    mask = None if mask is None else mask[:, -length:, None]
    if masks_hidden:
        hidden = masked(hidden, mask)
    past = memory.scan if length == 1 else None
    taps, bias = mixer.conv1d.weight[:, 0], mixer.conv1d.bias
    recording = records_gradients(mixer, hidden)  # the ops of a single step record none
    if past is not None and memory.conv is not None and mask is None and not recording and _steps_fused(mixer):
        into, x, dt, out = mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj
        weights = (taps, bias, x.weight, dt.weight, dt.bias, mixer.A_log, mixer.D)
        stepped = step_projections(mixer).step(hidden[:, 0], into.bias, out.bias, memory.conv, past, *weights)
        return stepped[:, None]
    x, z = _halves(mixer, hidden, recording)
    if not masks_hidden:
        x = masked(x, mask)
    if past is not None and memory.conv is not None and not recording:
        u = causal_conv1d_update(x.mT.to(memory.conv.dtype), memory.conv, taps, bias, activation="silu").mT
    else:
        u = causal_conv1d(memory.extend(x.mT), taps, bias, activation="silu")[..., -length:].mT
    u = masked(u, mask)
    delta, B, C, delta_bias = _selection(mixer, u)
    if past is not None and not recording:
        own = (batch, *mixer.D.shape)  # (batch, dim), or with heads (batch, heads, dim)
        x, dt, z = (each.reshape(own) for each in (u, delta, z))
        B, C = B[:, 0], C[:, 0]
        y = selective_state_update(past, x, dt, mixer.A_log, B, C, mixer.D, z, delta_bias, dt_softplus=True, log_A=True)
        y = y.view(batch, 1, -1)
    else:
        A = decay_rates(mixer, u.dtype)
        inputs = ScanInputs(
            u=u.mT,
            delta=delta.mT,
            A=A.flatten(0, -2),
            B=B.movedim(1, -1),
            C=C.movedim(1, -1),
            D=as_scanned(mixer.D, u.dtype).flatten(),
            z=z.mT,
            delta_bias=None if delta_bias is None else as_scanned(delta_bias, u.dtype).flatten(),
            # a copy: the cache is overwritten in place, and gradients need the old values
            initial_state=None if past is None else as_scanned(past, u.dtype).flatten(1, -2).clone(),
        )
        scanned, last_state = scan(promoted_scan(inputs))
        memory.keep(last_state.view(batch, *A.shape))
        y = scanned.mT.to(u.dtype)
    return product(mixer, "out_proj", y)


def _steps_fused(mixer: Any) -> bool:
    """Return True where one step is plain products with weights of the states' dtype: Mamba itself, no autocast."""
    if type(mixer).__name__ != "MambaMixer" or torch.is_autocast_enabled("cpu"):
        return False
    return all(map(is_plain_layer, (mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj)))


def _halves(mixer: Any, hidden: Tensor, recording: bool) -> tuple[Tensor, Tensor]:
    """Return the input of the convolution and the gate, (batch, length, dim); Zamba interleaves their channels."""
    if hasattr(mixer, "n_mamba_heads"):
        x, z = mixer.in_proj(hidden).unflatten(-1, (-1, 2)).unbind(-1)
        return x.contiguous(), z.contiguous()
    if recording or not is_plain_layer(mixer.in_proj):  # the gradient of half a weight is a copy of the whole
        x, z = mixer.in_proj(hidden).chunk(2, dim=-1)
        return x, z
    # two products instead of one that is split: both come out dense
    inner = mixer.in_proj.out_features // 2
    return product(mixer, "in_proj", hidden, slice(inner)), product(mixer, "in_proj", hidden, slice(inner, None))


def _selection(mixer: Any, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the step sizes (batch, length, dim), B and C (batch, length, [heads,] state), and the bias of the steps.

    The bias is None where the step sizes contain it already.
    """
    sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
    if hasattr(mixer, "n_mamba_heads"):
        by_head = u.unflatten(-1, (mixer.n_mamba_heads, -1))
        selected = torch.einsum("blhd,hpd->blhp", by_head, mixer.x_proj_weight)
        low_rank, B, C = selected.split(sizes, dim=-1)
        delta = torch.einsum("blhr,hdr->blhd", low_rank, mixer.dt_proj_weight).flatten(-2)
        return delta, B, C, mixer.dt_proj_bias
    selected = product(mixer, "x_proj", u)
    low_rank, B, C = (norm(each) for norm, each in zip(_norms(mixer), selected.split(sizes, dim=-1), strict=True))
    projection = mixer.dt_proj
    if is_plain_layer(projection):  # the bias goes into the scan, where it is added in float32
        return linear(low_rank, prepacked(mixer, "dt_proj", projection.weight)), B, C, projection.bias
    return projection(low_rank), B, C, None


def _norms(mixer: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield the normalisations of the low-rank steps, of B and of C."""
    for name in ("dt_layernorm", "b_layernorm", "c_layernorm"):
        if hasattr(mixer, name):
            yield getattr(mixer, name)
        elif hasattr(mixer, "rms_eps"):  # FalconMamba before its norms were modules
            yield functools.partial(_rms, eps=mixer.rms_eps)
        else:
            yield _as_is


def _rms(values: Tensor, eps: float) -> Tensor:
    return F.rms_norm(values.float(), values.shape[-1:], eps=eps).to(values.dtype)


def _as_is(values: Tensor) -> Tensor:
    return values
