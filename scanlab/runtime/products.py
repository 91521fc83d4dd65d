"""Products of linear layers, each by the backend of the op `linear` that was decided for it.

torch multiplies where no form of the weight may be kept (gradients, transforms, autocast, compiled code), and where
nothing faster was measured on this kind of silicon. $SCANLAB_LINEAR names a backend instead, such as "onednn".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scanlab.contract.base import DTYPE_NAMES
from scanlab.runtime import usage
from scanlab.runtime.dispatch import serving_now
from scanlab.runtime.dispatcher import Bound, call_logged
from scanlab.runtime.implementations import is_in_torch
from scanlab.runtime.traced import is_traced
from scanlab_kernels.checks import expect_one_device
from scanlab_kernels.linear import torch as by_torch
from scanlab_kernels.linear.op import LinearInputs, LinearProblem
from scanlab_kernels.linear.prepacked import Linear
from scanlab_kernels.linear.weights import PrepackedWeight, is_plain


class Rows(NamedTuple):
    """Number and dtype of the rows that a product takes; they are on the CPU."""

    number: int
    dtype: torch.dtype


def linear(x: Tensor, weight: PrepackedWeight, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T + bias; differentiable, and then torch's own.

    Shape:
        x (..., in), weight (out, in), bias (out,) -> (..., out).

    Raises:
        ProblemError: They are not all on one device.
    """
    plain = weight.weight
    if is_traced() or not x.numel() or not is_plain(x, plain, bias):
        expect_one_device(x=x, weight=plain, bias=bias)
        return by_torch.linear(x, weight, bias)
    # Other shapes torch broadcasts or refuses; a packed weight may be padded to the features of x.
    fits = plain.dim() == 2 and x.shape[-1:] == plain.shape[1:] and (bias is None or bias.shape == plain.shape[:1])
    bound = bound_linear(Rows(x.numel() // x.shape[-1], x.dtype), plain) if fits else None
    if bound is None:
        return by_torch.linear(x, weight, bias)
    inputs = LinearInputs(x, plain, bias, weight)
    out: Tensor = (bound.function(inputs) if not usage.active() else call_logged(bound, inputs)).out
    return out


def plan_linear(rows: Rows, weight: PrepackedWeight) -> Linear:
    """Return the product of such rows with a weight, for callers whose tensors stay plain, see `is_plain`."""
    bound = bound_linear(rows, weight.weight)
    if bound is None:
        return by_torch.linear
    function = bound.function

    def product(x: Tensor, weight: PrepackedWeight, bias: Tensor | None) -> Tensor:
        out: Tensor = function(LinearInputs(x, weight.weight, bias, weight)).out
        return out

    return product


def bound_linear(rows: Rows, weight: Tensor) -> Bound | None:
    """Return the chosen product, or None if torch multiplies in any case, or refuses to."""
    if (
        is_in_torch()
        or weight.dtype != rows.dtype
        or rows.dtype not in DTYPE_NAMES
        or not weight.numel()
        or not rows.number
    ):
        return None
    shape = weight.shape

    def pose() -> LinearProblem:
        return LinearProblem(
            rows=rows.number, in_features=shape[1], out_features=shape[0], dtype=DTYPE_NAMES[rows.dtype]
        )

    return serving_now().bound_to((LinearProblem, rows, shape), pose)
