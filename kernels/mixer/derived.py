"""What inference computes from a weight once, and keeps while the weight stays what it was."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

SAMPLED_PER_AXIS = 4  # values of a weight that are looked at


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
        self._state: tuple[object, ...] = ()
        self._some = self._sample = torch.empty(0)  # a view of the weight, which keeps its address its own
        self._value: Tensor | None = None

    def __call__(self, make: Callable[..., Tensor], weight: Tensor, *arguments: object) -> Tensor:
        """`make(weight, *arguments)`, kept where `keeps(weight)`."""
        if not keeps(weight):
            return make(weight, *arguments)
        state = (weight.data_ptr(), weight._version, weight.shape, weight.stride(), weight.dtype, *arguments)
        if self._value is None or state != self._state or not torch.equal(self._some, self._sample):
            self._value, self._state = make(weight, *arguments), state
            self._some = _some_of(weight)
            self._sample = self._some.clone()
        return self._value

    def __deepcopy__(self, memo: dict[int, object]) -> Derived:
        return Derived()

    def __reduce__(self) -> tuple[type[Derived], tuple[()]]:
        return Derived, ()


def _some_of(weight: Tensor) -> Tensor:
    """A view of a few values all over the weight."""
    steps = [slice(None, None, max(1, extent // SAMPLED_PER_AXIS)) for extent in weight.shape]
    return weight.detach()[tuple(steps)]


def keeps(weight: Tensor) -> bool:
    """Whether what is made of this weight can be kept: no gradient is wanted, and torch counts its changes."""
    return (
        not torch.compiler.is_compiling()
        and type(weight) in (Tensor, nn.Parameter)
        and not (torch.is_grad_enabled() and weight.requires_grad)
        and not weight.is_inference()
    )
