"""The linear layer by the kernels of this package: a product with a prepacked weight, and a GEMV for few rows.

`linear` is for at least MIN_ROWS rows, `few_rows` for at most MAX_FEW_ROWS, where a product is as fast as its weight
comes out of memory. Between the two neither gains over torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scanlab_kernels.linear.op import PrepackedWeight

MIN_ROWS = 32
MAX_FEW_ROWS = 8


def multiplies(dtype: torch.dtype) -> bool:
    """Return whether `linear` takes this dtype on the instruction set in use."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.scanlab_mixer.multiplies_bfloat16()))


def linear(x: Tensor, weight: PrepackedWeight, bias: Tensor | None) -> Tensor:
    """Return x weight^T + bias for many rows."""
    out: Tensor = torch.ops.scanlab_mixer.packed_linear(x, weight.native, bias, weight.weight.shape[0])
    return out


def few_rows(x: Tensor, weight: PrepackedWeight, bias: Tensor | None) -> Tensor:
    """Return x weight^T + bias for a few rows of float32; reads no prepacked form."""
    out: Tensor = torch.ops.scanlab_mixer.gemv(x.reshape(-1, x.shape[-1]), weight.weight, bias)
    return out.view(*x.shape[:-1], weight.weight.shape[0])
