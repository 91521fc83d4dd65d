"""What inference computes from weights once, and keeps for as long as they stay what they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from scanlab.runtime.serving import is_native

SAMPLED = 4  # values of a weight that are looked at

Made = TypeVar("Made")


class WeightCache(Generic[Made]):
    """What `make()` makes of weights, made anew when one of them is another one or was changed in place.

    torch does not count changes through `.data`, which optimisers and averages of weights make: a few of the
    values are looked at for those. Call `forget` where only single values change so. A copy, or one that was
    pickled, starts empty.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop what is kept."""
        # the mark of the weights, what is made of them, and they: their addresses are theirs for as long as they live
        self._kept: tuple[object, Made, Sequence[Tensor]] | None = None

    def __call__(self, make: Callable[[], Made], *weights: Tensor | None) -> Made:
        """`make()`, which reads `weights` and nothing else that changes; kept where it `keeps` them."""
        given = [weight for weight in weights if weight is not None]
        if not keeps(*given):
            return make()
        mark = torch.ops.scanlab_mixer.fingerprint(given) if is_native() else tuple(map(_mark, given))
        kept = self._kept  # read once: another thread may forget, or make something else
        if kept is None or kept[0] != mark:
            # What is made serves gradients of other tensors too, which inference tensors do not.
            with torch.inference_mode(False), torch.no_grad():
                kept = self._kept = mark, make(), given
        return kept[1]

    def __deepcopy__(self, memo: dict[int, object]) -> WeightCache[Made]:
        return WeightCache()

    def __reduce__(self) -> tuple[type[WeightCache[Made]], tuple[()]]:
        return WeightCache, ()


def _mark(weight: Tensor) -> tuple[object, ...]:
    """Where a weight lies, what torch knows of its changes, and a few values all over it, bit by bit."""
    some = weight.detach()[tuple(slice(None, None, max(1, extent // SAMPLED)) for extent in weight.shape)]
    bits = some.contiguous().flatten().view(torch.uint8).tolist()
    return weight.data_ptr(), weight._version, weight.shape, weight.stride(), weight.dtype, bits


def keeps(*weights: Tensor) -> bool:
    """Whether what is made of these weights can be kept: no derivative is wanted, torch counts their
    changes, and they lie where looking at them waits for nothing."""
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()  # the weights of torch.func stand for others
        or forward_ad._current_level >= 0
    ):
        return False
    wanted = torch.is_grad_enabled()
    for weight in weights:
        if (
            type(weight) not in (Tensor, nn.Parameter)
            or (wanted and weight.requires_grad)
            or weight.is_inference()
            or not weight.is_cpu
        ):
            return False
    return True
