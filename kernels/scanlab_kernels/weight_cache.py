"""Cache of values that inference derives from weights, valid while the weights are unchanged."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from scanlab_kernels.cpu import extension

MAX_RECENT = 8  # values that `RecentWeights` keeps
MAX_TOGETHER = 16  # weights that the native op takes in one call; max_weights in cpu/library.cpp
SAMPLED = 4  # values along each axis of a weight that its fingerprint holds

PLAIN_TYPES = frozenset((Tensor, nn.Parameter))
_is_cpu, _requires_grad = operator.attrgetter("is_cpu"), operator.attrgetter("requires_grad")
_version = operator.attrgetter("_version")

Made = TypeVar("Made")


class WeightCache(Generic[Made]):
    """Value computed from weights, computed anew when one of them was replaced or changed in place.

    torch does not count changes through `.data`, which optimisers and weight averaging make; the fingerprint of a
    weight samples its values for that. Call `clear` after changing single values that way. A copy, or a pickled one,
    starts empty. At most one value is kept.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Drop the value."""
        # The weights are kept too: an address identifies a weight only while it lives.
        self._kept: tuple[object, Made, Sequence[Tensor]] | None = None

    def __call__(self, make: Callable[[], Made], *weights: Tensor | None) -> Made:
        """Return `make()`, which reads `weights` and nothing else that changes; kept where `can_keep(weights)`."""
        given = [weight for weight in weights if weight is not None]
        if not can_keep(given):
            return make()
        mark = fingerprint(given)
        kept = self._kept  # read once: another thread may clear it, or store another value
        if kept is None or kept[0] != mark:
            # The value serves gradients of other tensors too, which inference tensors do not.
            with torch.inference_mode(False), torch.no_grad():
                kept = self._kept = mark, make(), given
        return kept[1]

    def holds(self, value: Made) -> bool:
        """Return whether `value` is the one that is kept."""
        kept = self._kept
        return kept is not None and kept[1] is value

    def __deepcopy__(self, memo: dict[int, object]) -> WeightCache[Made]:
        return WeightCache()

    def __reduce__(self) -> tuple[type[WeightCache[Made]], tuple[()]]:
        return WeightCache, ()


class RecentWeights(Generic[Made]):
    """Values computed from the weights seen last, for callers that keep none; valid until torch counts a change."""

    def __init__(self) -> None:
        self._kept: OrderedDict[object, tuple[object, Made, Sequence[Tensor | None]]] = OrderedDict()

    def __call__(self, make: Callable[[], Made], *weights: Tensor | None) -> Made:
        """Return `make()`, which reads `weights` and nothing else that changes."""
        if any(weight is not None and weight.is_inference() for weight in weights):  # torch counts no changes of these
            return make()
        key = tuple(map(id, weights))
        versions = [0 if weight is None else weight._version for weight in weights]
        kept = self._kept.get(key)  # holds the weights, without which an address says nothing
        if kept is None or kept[0] != versions:
            kept = self._kept[key] = versions, make(), weights
            while len(self._kept) > MAX_RECENT:
                self._kept.popitem(last=False)
        return kept[1]


def fingerprint(weights: list[Tensor]) -> object:
    """Return a value that changes when one of the weights is replaced or changed in place."""
    if not extension.is_loaded():
        return tuple(map(_mark, weights))
    mark = hash(tuple(map(_version, weights)))
    for first in range(0, len(weights), MAX_TOGETHER):
        mark = torch.ops.scanlab_mixer.fingerprint(mark, *weights[first : first + MAX_TOGETHER])
    return mark


def _mark(weight: Tensor) -> tuple[object, ...]:
    """Return the address of a weight, its version counter, its layout, and the bits of a sample of its values."""
    some = weight.detach()[tuple(slice(None, None, max(1, extent // SAMPLED)) for extent in weight.shape)]
    bits = some.contiguous().flatten().view(torch.uint8).tolist()
    return weight.data_ptr(), weight._version, weight.shape, weight.stride(), weight.dtype, bits


def can_keep(weights: Sequence[Tensor]) -> bool:
    """Return whether a value computed from these weights can be kept.

    It cannot where a derivative is wanted, where torch does not count their changes, and where reading them means
    waiting for a device.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()  # the weights of torch.func stand for others
        or forward_ad._current_level >= 0
    ):
        return False
    # Read at every call of a block: loops of C are several times as fast as Python's.
    return (
        PLAIN_TYPES.issuperset(map(type, weights))
        and all(map(_is_cpu, weights))
        and not any(map(Tensor.is_inference, weights))
        and not (torch.is_grad_enabled() and any(map(_requires_grad, weights)))
    )
