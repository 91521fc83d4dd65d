"""Layers of transformers' mixers as the patch computes them: products, decay rates and padding."""

from __future__ import annotations

from collections import defaultdict
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from scanlab.models.mamba_weights import rates
from scanlab.models.plain_layers import is_plain_layer
from scanlab.runtime.ops import PrepackedWeight, WeightCache, linear
from scanlab.runtime.step import StepProjections
from scanlab.runtime.traced import is_traced

# Values that inference computes from the weights of each mixer; beside the mixer, which stays as it was.
_caches: WeakKeyDictionary[nn.Module, defaultdict[str, WeightCache[Any]]] = WeakKeyDictionary()


def _kept(mixer: nn.Module, name: str) -> WeightCache[Any]:
    kept = _caches.get(mixer)
    if kept is None:
        kept = _caches.setdefault(mixer, defaultdict(WeightCache[Any]))
    return kept[name]


def decay_rates(mixer: Any, dtype: torch.dtype) -> Tensor:
    """Return A = -exp(A_log), in the shape of A_log, as a scan of `dtype` reads it."""
    if is_traced():
        return rates(mixer.A_log, dtype)
    A: Tensor = _kept(mixer, f"A {dtype}")(lambda: rates(mixer.A_log, dtype), mixer.A_log)
    return A


def prepacked(mixer: nn.Module, name: str, weight: Tensor) -> PrepackedWeight:
    """Return a weight of `mixer` as products read it."""
    if is_traced():
        return PrepackedWeight(weight)
    made: PrepackedWeight = _kept(mixer, name)(lambda: PrepackedWeight(weight), weight)
    return made


def step_projections(mixer: Any) -> StepProjections:
    """Return the projections of `mixer` as its steps multiply with them."""
    into, out = mixer.in_proj.weight, mixer.out_proj.weight
    made: StepProjections = _kept(mixer, "step")(
        lambda: StepProjections(PrepackedWeight(into), PrepackedWeight(out)), into, out
    )
    return made


def product(mixer: Any, name: str, x: Tensor, half: slice | None = None) -> Tensor:
    """Return the output of the projection called `name`, or half of it; prepack its weight where that is possible."""
    projection = getattr(mixer, name)
    if not is_plain_layer(projection):
        whole: Tensor = projection(x)
        return whole if half is None else whole[..., half]
    weight, bias = projection.weight, projection.bias
    if half is None:  # no slice, whose gradient would be a copy as large as the weight
        return linear(x, prepacked(mixer, name, weight), bias)
    part = prepacked(mixer, f"{name} {half.start} {half.stop}", weight[half])
    return linear(x, part, None if bias is None else bias[half])


def masked(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return values (batch, length, dim) with zeros where mask (batch, length, 1) is 0."""
    return values if mask is None else (values * mask).to(values.dtype)


def records_gradients(mixer: nn.Module, hidden: Tensor) -> bool:
    """Return whether autograd records the call of `mixer` with `hidden`."""
    return torch.is_grad_enabled() and (hidden.requires_grad or any(each.requires_grad for each in mixer.parameters()))
