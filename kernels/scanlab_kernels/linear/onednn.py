"""The linear layer by oneDNN with a prepacked weight, as torch's compiler calls it: AMX where the CPU has it."""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from scanlab_kernels.linear.op import PrepackedWeight

X86 = platform.machine() in ("x86_64", "AMD64")


def unavailable(dtype: torch.dtype) -> str | None:
    """Return why oneDNN cannot multiply `dtype` with a prepacked weight here, or None."""
    if not X86 or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this build of torch has no oneDNN product with a prepacked weight"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"it takes float32 and bfloat16, not {dtype}"
    return None


def linear(x: Tensor, weight: PrepackedWeight, bias: Tensor | None) -> Tensor:
    """Return x weight^T + bias."""
    dense_bias = None if bias is None else bias.contiguous()  # oneDNN reads it as dense, whatever its strides
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.onednn, dense_bias, "none", [], "")
    return out
