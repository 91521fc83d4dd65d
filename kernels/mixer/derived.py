"""What inference computes from a weight once, and keeps while the weight stays what it was."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

SAMPLED = 16  # values of a weight that are looked at


class Derived:
    """The tensor `make(weight, *arguments)`, made anew when the weight is another one or was changed in place.

    torch does not count changes through `.data`, which optimisers and averages of weights make: a few of the
    values are looked at for those. Call `forget` where only single values change so. A copy, or one that was
    pickled, starts empty.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop what is kept."""
        self._weight: Tensor | None = None  # held, so that its address stays its own
        self._state: tuple[object, ...] = ()
        self._sample: Tensor | None = None
        self._value: Tensor | None = None

    def __call__(self, make: Callable[..., Tensor], weight: Tensor, *arguments: object) -> Tensor:
        """`make(weight, *arguments)`, kept where `keeps(weight)`."""
        if not keeps(weight):
            return make(weight, *arguments)
        state = (weight.data_ptr(), weight._version, weight.shape, weight.stride(), weight.dtype, *arguments)
        sample = weight.detach().view(-1)[:: max(1, weight.numel() // SAMPLED)] if weight.is_contiguous() else None
        if self._value is None or state != self._state or not _same(sample, self._sample):
            self._value, self._weight, self._state = make(weight, *arguments), weight, state
            self._sample = None if sample is None else sample.clone()
        return self._value

    def __deepcopy__(self, memo: dict[int, object]) -> Derived:
        return Derived()

    def __reduce__(self) -> tuple[type[Derived], tuple[()]]:
        return Derived, ()


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def keeps(weight: Tensor) -> bool:
    """Whether what is made of this weight can be kept: no gradient is wanted, and torch counts its changes."""
    return (
        not torch.compiler.is_compiling()
        and type(weight) in (Tensor, nn.Parameter)
        and not (torch.is_grad_enabled() and weight.requires_grad)
        and not weight.is_inference()
    )
