"""Matrix products of inference as fast as this machine has them: by oneDNN, or by a kernel for a few rows.

torch hands a float32 product to MKL with the weight as it lies. oneDNN, which torch brings along, takes a quarter
less time on AVX-512 where the weight lies in its own blocks and there are a few dozen rows to multiply. For a few
rows a product is as fast as its weight comes out of memory, which MKL reads with one thread on some processors.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.mixer.derived import Derived, keeps
from scanlab.mixer.serving import is_native

FEWEST_ROWS = 32  # of a packed product; below, packing gains nothing
MOST_THIN_ROWS = 8  # of a product whose weight is read once; beyond, MKL is as fast
DTYPES = (torch.float32, torch.bfloat16)
X86 = platform.machine() in ("x86_64", "AMD64")


def packed_linear(
    packed: Derived, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scale: float = 1.0
) -> Tensor:
    """x (..., in) -> x (scale weight)^T + bias, (..., out), with the packed weight kept in `packed`.

    weight (out, in), bias (out,). Where no gradient is wanted on a CPU: packed for at least 32 rows in float32 or
    bfloat16 on x86, and then the weight is in memory twice; by a kernel of its own for up to 8 rows in float32. Else
    torch.nn.functional.linear, and so it is everywhere under SCANLAB_MIXER=torch.
    """
    if packs(x, weight):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed(_pack, weight, scale), bias, "none", [], "")
        return out
    if is_thin(x, weight):
        rows = x.reshape(-1, x.shape[-1])
        out = torch.ops.scanlab_mixer.thin_linear(rows if scale == 1.0 else scale * rows, weight, bias)
        return out.view(*x.shape[:-1], len(weight))
    return F.linear(x, weight if scale == 1.0 else scale * weight, bias)


def _pack(weight: Tensor, scale: float) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight((scale * weight).contiguous())
    return packed


def packs(x: Tensor, weight: Tensor) -> bool:
    """Whether a product of these is worth a packed weight, and oneDNN takes it."""
    return (
        X86
        and x.dtype in DTYPES
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and _is_ours(x, weight)
    )


def is_thin(x: Tensor, weight: Tensor) -> bool:
    """Whether a product of these has so few rows that it is for the native kernel."""
    return x.dtype == torch.float32 and 0 < x.numel() <= MOST_THIN_ROWS * x.shape[-1] and _is_ours(x, weight)


def _is_ours(x: Tensor, weight: Tensor) -> bool:
    """Whether torch would do no more than multiply these, on a CPU whose native ops serve."""
    return (
        keeps(weight)
        and type(x) is Tensor
        and x.is_cpu
        and x.dtype == weight.dtype
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and is_native()
    )
