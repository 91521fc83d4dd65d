"""Layers whose call is the product with their weight and nothing else, so that a fused op may read the weight."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import module as torch_module


def is_plain_layer(layer: nn.Module) -> bool:
    """Return True where calling `layer` only multiplies or convolves with its weight.

    Such a layer is torch's own Linear or Conv1d with an ordinary weight, and has no hooks; no global hook of torch is
    registered either. Quantisation, adapters and parametrizations replace the class or its forward, or wrap the
    weight. Pruning, weight_norm and spectral_norm recompute the weight in a hook.
    """
    if type(layer) not in (nn.Linear, nn.Conv1d) or "forward" in layer.__dict__:
        return False
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    if any(hooks) or torch_module._has_any_global_hook():
        return False
    return type(layer.weight) in (nn.Parameter, Tensor)
