"""Matrix products of inference as fast as this machine has them, with weights packed for the kernel that reads them.

torch hands a float32 product to MKL with the weight as it lies, and MKL is slow on processors that it was not written
for. oneDNN, which torch brings along and which takes packed weights, is as fast as a kernel of ours, but a call of it
costs 15 to 35 us more, and a mixer calls seven. So a product of float32 is ours, and so is one of bfloat16 where the
machine has instructions for it; elsewhere oneDNN gets those of bfloat16. For a few rows a product is as fast as its
weight comes out of memory, which MKL reads with one thread on some processors.
"""

from __future__ import annotations

import platform
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.runtime.serving import is_native
from scanlab_kernels.weight_cache import keeps

FEWEST_ROWS = 32  # of a packed product; below, packing gains nothing
MOST_THIN_ROWS = 8  # of a product whose weight is read once; beyond, MKL is as fast
X86 = platform.machine() in ("x86_64", "AMD64")


class PrepackedWeight:
    """The weight of a linear layer, (out, in), and the forms of it that kernels read.

    A form is made when it is first asked for, and then the weight is in memory twice.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    @cached_property
    def native(self) -> Tensor:
        """As the native product reads it, on every instruction set."""
        packed: Tensor = torch.ops.scanlab_mixer.pack_linear(self.weight)
        return packed

    @cached_property
    def blocks(self) -> Tensor:
        """As oneDNN reads it."""
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())
        return packed


def packed_linear(x: Tensor, packed: PrepackedWeight, bias: Tensor | None = None) -> Tensor:
    """x (..., in) -> x weight^T + bias, (..., out).

    bias (out,). Where no gradient is wanted on a CPU: packed for at least 32 rows of float32, or of bfloat16 on x86;
    by a kernel of its own for up to 8 rows of float32. Else torch.nn.functional.linear, and so it is everywhere
    under SCANLAB_MIXER=torch.
    """
    weight = packed.weight
    if packs(x, weight, bias):
        if multiplies(x.dtype):
            out: Tensor = torch.ops.scanlab_mixer.packed_linear(x, packed.native, bias, weight.shape[0])
            return out
        dense_bias = None if bias is None else bias.contiguous()  # oneDNN reads it as dense, whatever its strides
        out = torch.ops.mkldnn._linear_pointwise(x, packed.blocks, dense_bias, "none", [], "")
        return out
    if is_thin(x, weight, bias):
        out = torch.ops.scanlab_mixer.thin_linear(x.reshape(-1, x.shape[-1]), weight, bias)
        return out.view(*x.shape[:-1], weight.shape[0])
    return F.linear(x, weight, bias)


def has_few_rows(x: Tensor) -> bool:
    """Whether x (..., in) has so few rows that no packed form is read, and keeping one costs more than it saves."""
    return x.numel() == 0 or x.numel() < FEWEST_ROWS * x.shape[-1]


def packs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether a product of these is worth a packed weight, and there is a kernel that takes it."""
    return (
        not has_few_rows(x)
        and weight.numel() > 0
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.dtype == weight.dtype
        and is_ours(x, weight, bias)
        and (multiplies(x.dtype) or takes_blocks())
    )


def is_thin(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether a product of these has so few rows that it is for the native kernel."""
    few = 0 < x.numel() <= MOST_THIN_ROWS * x.shape[-1]
    return few and x.dtype == weight.dtype == torch.float32 and weight.numel() > 0 and is_ours(x, weight, bias)


def multiplies(dtype: torch.dtype) -> bool:
    """Whether the native product takes this dtype, on the instruction set in use."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.scanlab_mixer.multiplies_bfloat16()))


def takes_blocks() -> bool:
    """Whether oneDNN takes packed weights on this machine."""
    return X86 and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def is_ours(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether torch would do no more than compute with these, on a CPU whose native ops serve."""
    return (
        type(x) is Tensor
        and x.is_cpu
        and not (torch.is_grad_enabled() and x.requires_grad)
        and keeps(*[weight for weight in weights if weight is not None])
        and not torch.is_autocast_enabled("cpu")
        and is_native()
    )
