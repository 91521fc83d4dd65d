"""Mixer composed of calls of its layers, for layers that do more than multiply with their weight.

The fused ops of `mamba_weights` read the weights of the layers, so that hooks, adapters, quantised or pruned layers
would be passed over. Here every layer is called, once for each time that the official code applies it.

Source: hustvl/Vim@dd0358a, mamba-1p1p1/mamba_ssm/modules/mamba_simple.py, Mamba; for bimamba_type v3
ge-xing/SegMamba@def8068, mamba/mamba_ssm/modules/mamba_simple.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.problem import ScanInputs
from scanlab.errors import ProblemError
from scanlab.models.mamba_weights import LAYERS, Mixing, as_scanned, rates, taps
from scanlab.models.plain_layers import is_plain_layer
from scanlab.runtime.dispatch import Scan
from scanlab.runtime.ops import causal_conv1d
from scanlab.runtime.promotion import promoted_scan


class Scanned(NamedTuple):
    """Results of a mixer before its output projection.

    Args:
        x: (batch, length, inner), the input of the convolution.
        y: (batch, inner, length), the sum over the directions.
        last_state: (batch, inner, state), of the forward direction.
    """

    x: Tensor
    y: Tensor
    last_state: Tensor


def has_plain_layers(mixer: Mixing) -> bool:
    """Return whether the fused ops support the mixer and give the results of its layers."""
    names, layers = LAYERS.get(mixer.bimamba_type), mixer._modules
    return names is not None and all([is_plain_layer(layers[name]) for name in names])  # type: ignore[arg-type]


def mix(mixer: Mixing, hidden: Tensor, scan: Scan, *, bidirectional: bool, halves: bool) -> Tensor:
    """Return the output of `mixer` for hidden (batch, length, dim), as `Mixing.mix` does."""
    return project(mixer, scan_directions(mixer, hidden, scan, bidirectional=bidirectional).y, halves=halves)


def scan_directions(
    mixer: Mixing, hidden: Tensor, scan: Scan, *, bidirectional: bool, slices: int | None = None
) -> Scanned:
    """Return the scan of hidden (batch, length, dim) in one direction or both.

    Args:
        mixer: The mixer.
        hidden: (batch, length, dim).
        scan: Computes the recurrences.
        bidirectional: Scan in reverse too, by the weights that bimamba_type names.
        slices: Add the third branch of bimamba_type v3, which scans the first step of each of so many equal slices of
            the sequence, then the second of each, and so on.

    Raises:
        ProblemError: The length is not a multiple of `slices`.
    """
    length = hidden.shape[1]
    if slices is not None and length % slices:
        raise ProblemError(f"length {length} with nslices={slices}: must be a multiple of it; pad the sequence.")
    x, z = mixer.in_proj(hidden).chunk(2, dim=-1)
    inputs = [_scan_inputs(mixer, x, z, "")]
    if bidirectional and mixer.bimamba_type == "v1":
        inputs.append(inputs[0].with_tensors(A=rates(mixer.A_b_log, x.dtype)))  # type: ignore[arg-type]
    elif bidirectional:
        inputs.append(_scan_inputs(mixer, x, z, "_b", reverse=True))
    y, last_state = scan(*map(promoted_scan, inputs), direction="bidirectional" if bidirectional else "forward")
    if slices is not None:
        dealt = _scan_inputs(mixer, _deal(x, slices), _deal(z, slices), "_s")
        y = y + _gather(scan(promoted_scan(dealt)).out, slices)
    return Scanned(x, y.to(x.dtype), last_state[0] if bidirectional else last_state)


def project(mixer: Mixing, y: Tensor, *, halves: bool) -> Tensor:
    """Return the output (batch, length, dim) of a scan's (batch, inner, length), or of half of it."""
    out: Tensor = mixer.out_proj(0.5 * y.mT if halves else y.mT)
    return out if mixer.gamma is None else out * mixer.gamma


def _scan_inputs(mixer: Mixing, x: Tensor, z: Tensor, suffix: str, *, reverse: bool = False) -> ScanInputs:
    """Return the inputs of the scan by the weights with this suffix, for x and z (batch, length, inner)."""
    layers: list[Any] = [getattr(mixer, f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj")]
    conv, x_proj, dt_proj = layers
    A_log, D = getattr(mixer, f"A{suffix}_log"), getattr(mixer, f"D{suffix}")
    u = convolve(conv, x, reverse=reverse)
    selected = x_proj(u)
    state = A_log.shape[1]
    low_rank, B, C = selected.split([selected.shape[-1] - 2 * state, state, state], dim=-1)
    if is_plain_layer(dt_proj):  # the bias is added in float32, before the softplus
        delta, delta_bias = F.linear(low_rank, dt_proj.weight), as_scanned(dt_proj.bias, x.dtype)
    else:  # a bias of zeros, for both directions of a scan have one or none
        delta, delta_bias = dt_proj(low_rank), torch.zeros_like(as_scanned(D, x.dtype))
    return ScanInputs(u.mT, delta.mT, rates(A_log, x.dtype), B.mT, C.mT, as_scanned(D, x.dtype), z.mT, delta_bias)


def convolve(conv: Any, x: Tensor, *, reverse: bool = False) -> Tensor:
    """Return silu of the causal convolution of x (batch, length, inner) by a layer; in reverse, against time."""
    if is_plain_layer(conv):
        convolved: Tensor = causal_conv1d(x.mT, *taps(conv), activation="silu", reverse=reverse).mT
        return convolved
    steps = x.flip(1) if reverse else x
    out: Tensor = F.silu(conv(steps.mT)[..., : x.shape[1]]).mT.contiguous()
    return out.flip(1) if reverse else out


def _deal(steps: Tensor, slices: int) -> Tensor:
    """Return the steps (batch, length, inner) taken from each of the slices in turn."""
    dealt: Tensor = steps.unflatten(1, (slices, -1)).transpose(1, 2).flatten(1, 2)
    return dealt


def _gather(y: Tensor, slices: int) -> Tensor:
    """Return y (batch, inner, length), whose steps `_deal` dealt, in order of time."""
    out: Tensor = y.unflatten(-1, (-1, slices)).mT.flatten(-2)
    return out
