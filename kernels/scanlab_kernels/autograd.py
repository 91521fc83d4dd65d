"""Gradients without gradients of their own, which they refuse.

torch's `once_differentiable` refuses them too, but leaves its results unconnected to their inputs:
`torch.autograd.grad` then takes it for a constant there, and a Hessian silently lacks a part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

NOT_TWICE = (
    "this scan has no second derivatives: take the backend that has all of them, `reference`, by its name"
    " or with SCANLAB_BACKEND=reference."
)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        return compute(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> NoReturn:
        raise NotImplementedError(NOT_TWICE)


def once(compute: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return `compute(*tensors)`, whose derivative raises NotImplementedError."""
    return cast("tuple[Tensor, ...]", _Once.apply(compute, *tensors))  # type: ignore[no-untyped-call]


def refusing(message: str) -> tuple[Callable[..., None], Callable[..., NoReturn]]:
    """Return a `setup_context` and a `backward` for an op without a derivative; the latter raises NotImplementedError.

    They are in the order of the arguments of `torch.library.register_autograd`.
    """

    def keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    def refuse(ctx: Any, *gradients: Tensor | None) -> NoReturn:
        raise NotImplementedError(message)

    return keep_nothing, refuse
