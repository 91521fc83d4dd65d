"""The linear layer by torch itself, differentiable."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.backend import Backend
from scanlab.contract.base import DTYPES
from scanlab.contract.cpu import threads_tunable
from scanlab.contract.space import Space
from scanlab.errors import ProblemError
from scanlab_kernels.linear.prepacked import LinearCapabilities, maker
from scanlab_kernels.linear.weights import PrepackedWeight


def linear(x: Tensor, weight: PrepackedWeight, bias: Tensor | None) -> Tensor:
    """Return x weight^T + bias; reads no prepacked form.

    Raises:
        ProblemError: The bias is quantized, which torch takes for a fault of its own.
    """
    if bias is not None and bias.is_quantized:
        raise ProblemError(f"bias is {bias.dtype}: must be floating; pass bias.dequantize().")
    dense_bias = None if bias is None else bias.contiguous()  # oneDNN ignores its strides
    return F.linear(x, weight.weight, dense_bias)


backend = Backend(
    name="linear_torch",
    summary="torch.nn.functional.linear",
    rank=0,
    sources=(Path(__file__),),
    space=Space((threads_tunable(),)),
    capabilities=LinearCapabilities(devices=("cpu", "cuda"), dtypes=tuple(DTYPES), gradients=True),
    make=maker(linear),
    op="linear",
)
