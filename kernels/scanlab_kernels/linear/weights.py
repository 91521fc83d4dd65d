"""Weights of linear layers in the forms that implementations read, made once and kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from scanlab_kernels.weight_cache import can_keep


class PrepackedWeight:
    """The weight of a linear layer, (out, in), and its forms; each is made when it is first asked for.

    The forms are of the weight as it was: the owner of a PrepackedWeight drops it when the weight changes.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self._forms: dict[Hashable, Tensor] = {}
        self._latest: tuple[Hashable, Tensor | None, Hashable] = None, None, None  # key, form, key asked for last

    def form(self, key: Hashable, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the form called `key`, which is `make` of the weight."""
        found = self._forms.get(key)
        if found is None:
            found = self._forms[key] = make(self.weight)
        return found

    def latest_form(self, key: Hashable, make: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Return the form called `key`, of which there may be many: only the latest is kept.

        None where another one is kept and the call before asked for another key: a form that is used once is not worth
        making.
        """
        kept_key, form, asked = self._latest
        if form is None or (key == asked and key != kept_key):
            kept_key, form = key, make(self.weight)
        self._latest = kept_key, form, key
        return form if key == kept_key else None

    @property
    def prepacked_bytes(self) -> int:
        """Bytes of the forms, beside those of the weight; without a library's padding."""
        return sum(form.nbytes for form in (*self._forms.values(), self._latest[1]) if form is not None)


def dense_bias(bias: Tensor | None, weight: Tensor) -> Tensor | None:
    """Return a bias with a number for each row of the weight, one behind the other: libraries look at neither."""
    return None if bias is None else bias.expand(weight.shape[0]).contiguous()


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
