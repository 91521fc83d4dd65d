"""The linear layer by torch itself, differentiable: the reference."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from scanlab_kernels.linear.op import PrepackedWeight


def linear(x: Tensor, weight: PrepackedWeight, bias: Tensor | None) -> Tensor:
    """Return x weight^T + bias; reads no prepacked form."""
    dense_bias = None if bias is None else bias.contiguous()  # oneDNN reads it as dense, whatever its strides
    return F.linear(x, weight.weight, dense_bias)
