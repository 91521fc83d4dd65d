"""Linear layer of inference, x weight^T + bias, whose weight may be kept in a prepacked form.

Every implementation is a function `linear(x, weight, bias)`:

    x       (..., in), at least one row
    weight  PrepackedWeight of (out, in), the dtype of x
    bias    (out,) or None
    returns (..., out), the dtype of x

`torch.py` is differentiable and takes every dtype; the others take what `is_plain` accepts.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from scanlab_kernels.weight_cache import can_keep


class PrepackedWeight:
    """The weight of a linear layer, (out, in), and the forms of it that implementations read.

    A form is made when it is first asked for; from then on the weight is in memory twice.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    @cached_property
    def native(self) -> Tensor:
        """The form that the native product reads, on every instruction set."""
        packed: Tensor = torch.ops.scanlab_mixer.pack_linear(self.weight)
        return packed

    @cached_property
    def onednn(self) -> Tensor:
        """The form that oneDNN reads."""
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())
        return packed


def is_plain(x: Tensor, *weights: Tensor | None) -> bool:
    """Return whether torch would do nothing but compute with these on the CPU.

    No gradient, tangent, transform, autocast or tensor subclass is involved, and `weights` do not change unnoticed.
    """
    return (
        type(x) is Tensor
        and x.is_cpu
        and not (torch.is_grad_enabled() and x.requires_grad)
        and can_keep([weight for weight in weights if weight is not None])
        and not torch.is_autocast_enabled("cpu")
    )
