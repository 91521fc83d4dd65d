"""The linear layer by MKL with a weight that is prepacked for one number of rows, as torch's compiler calls it.

Packing takes as long as several products and the memory of another weight. So a weight is kept packed for one number of
rows, the first or another that comes twice in succession; torch multiplies what has any other.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from scanlab.contract.backend import Backend
from scanlab.contract.cpu import threads_tunable
from scanlab.contract.space import Space
from scanlab_kernels.linear import torch as by_torch
from scanlab_kernels.linear.prepacked import LinearCapabilities, maker
from scanlab_kernels.linear.weights import PrepackedWeight, dense_bias


def unavailable() -> str | None:
    """Return why this torch cannot multiply with a weight that MKL has prepacked, or None."""
    if not torch.backends.mkl.is_available() or not hasattr(torch.ops.mkl, "_mkl_linear"):
        return "this build of torch has no MKL product with a prepacked weight; install one that has MKL."
    return None


def packed(weight: PrepackedWeight, rows: int) -> Tensor | None:
    """Return the form of the weight for so many rows; None where another one is kept."""
    return weight.latest_form(rows, lambda plain: torch.ops.mkl._mkl_reorder_linear_weight(plain.contiguous(), rows))


def linear(x: Tensor, weight: PrepackedWeight, bias: Tensor | None) -> Tensor:
    """Return x weight^T + bias."""
    rows = x.numel() // x.shape[-1]
    form = packed(weight, rows)
    if form is None:
        return by_torch.linear(x, weight, bias)
    out: Tensor = torch.ops.mkl._mkl_linear.default(x, form, weight.weight, dense_bias(bias, weight.weight), rows)
    return out


backend = Backend(
    name="linear_mkl",
    summary="MKL with a weight prepacked for the number of rows",
    rank=2,
    sources=(Path(__file__),),
    space=Space((threads_tunable(),)),
    capabilities=LinearCapabilities(),
    make=maker(linear),
    unavailable=unavailable,
    op="linear",
)
