"""Layers whose call is the product with their weight and nothing else, so that a fused op may read the weight."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import module as torch_module


def is_called_plainly(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Return True where calling `module`, of one of the classes `kinds`, runs the forward of that class alone.

    It has no hooks, and no global hook of torch is registered.
    """
    own = module.__dict__  # read at every call of a block, where nn.Module's search for attributes would take long
    return (
        type(module) in kinds
        and "forward" not in own
        and not (own["_forward_hooks"] or own["_forward_pre_hooks"])
        and not (own["_backward_hooks"] or own["_backward_pre_hooks"])
        and not torch_module._has_any_global_hook()
    )


def is_plain_layer(layer: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d)) -> bool:
    """Return True where calling `layer` only computes with its weight as its class defines.

    Such a layer is of one of the classes `kinds`, has an ordinary weight and no hooks; no global hook of torch is
    registered either. Quantisation, adapters and parametrizations replace the class or its forward, or wrap the
    weight. Pruning, weight_norm and spectral_norm recompute the weight in a hook.
    """
    return is_called_plainly(layer, kinds) and type(layer._parameters.get("weight")) in (nn.Parameter, Tensor)
