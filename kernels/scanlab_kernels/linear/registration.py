"""Shapes of the products of the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from scanlab_kernels.cpu.registration import MIXER_CURE, refuse_gradients, register_shapes


def empty_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return an empty tensor like the product of `gemv`."""
    return x.new_empty((x.shape[0], weight.shape[0]))


def empty_packed(weight: Tensor) -> Tensor:
    """Return an empty tensor like a packed weight."""
    features, depth = weight.shape
    step = 2 if weight.dtype == torch.bfloat16 else 1
    return weight.new_empty(((features + 15) // 16 * 16 * ((depth + step - 1) // step * step),))


def empty_packed_product(x: Tensor, packed: Tensor, bias: Tensor | None, features: int) -> Tensor:
    """Return an empty tensor like the product with a packed weight."""
    return x.new_empty((*x.shape[:-1], features))


def register() -> None:
    """Register gradients and shapes of the C++ ops."""
    ops = torch.ops.scanlab_mixer
    for op, shapes in (
        (ops.gemv.default, empty_product),
        (ops.pack_linear.default, empty_packed),
        (ops.packed_linear.default, empty_packed_product),
    ):
        register_shapes(op, shapes)
        refuse_gradients(op, MIXER_CURE)
