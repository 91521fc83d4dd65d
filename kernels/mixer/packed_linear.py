"""Matrix products of inference with the weight packed once, by oneDNN.

torch hands a float32 product to MKL with the weight as it lies. oneDNN, which torch brings along, takes a quarter
less time on AVX-512 where the weight lies in its own blocks and there are a few dozen rows to multiply.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.mixer.derived import Derived, keeps
from scanlab.mixer.native import is_native

FEWEST_ROWS = 32  # below, packing gains nothing: a product is as fast as its weight comes out of memory
DTYPES = (torch.float32, torch.bfloat16)
X86 = platform.machine() in ("x86_64", "AMD64")


def packed_linear(
    packed: Derived, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scale: float = 1.0
) -> Tensor:
    """x (..., in) -> x (scale weight)^T + bias, (..., out), with the packed weight kept in `packed`.

    weight (out, in), bias (out,). Packed only where no gradient is wanted, for at least 32 rows in float32 or
    bfloat16 on an x86 CPU; then the weight is in memory twice. Else torch.nn.functional.linear, and so it is
    everywhere under SCANLAB_MIXER=torch.
    """
    if packs(x, weight):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed(_pack, weight, scale), bias, "none", [], "")
        return out
    return F.linear(x, weight if scale == 1.0 else scale * weight, bias)


def _pack(weight: Tensor, scale: float) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight((scale * weight).contiguous())
    return packed


def packs(x: Tensor, weight: Tensor) -> bool:
    """Whether a product of these is worth a packed weight, and oneDNN takes it."""
    return (
        X86
        and keeps(weight)
        and type(x) is Tensor
        and x.is_cpu
        and x.dtype == weight.dtype
        and x.dtype in DTYPES
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and is_native()
    )
