"""The linear layer by the C++ kernels of this package: a product with a prepacked weight, and one for few rows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from scanlab.contract.backend import Backend
from scanlab.contract.cpu import threads_tunable
from scanlab.contract.space import Space
from scanlab_kernels.build import PACKAGE, headers
from scanlab_kernels.cpu import extension
from scanlab_kernels.cpu.isa import BFLOAT16, FAMILY, chosen_isa
from scanlab_kernels.linear.prepacked import LinearCapabilities, maker
from scanlab_kernels.linear.weights import PrepackedWeight

# Beyond, a product of `few_rows` reads the weight more than once and gains nothing.
MAX_FEW_ROWS = 8
FOLDER = Path(__file__).parent
SOURCES = (Path(__file__), *headers(FOLDER), *headers(PACKAGE / "cpu"), FOLDER / "native.cpp")

HAS_BFLOAT16 = any(isa.is_supported() and isa.name.startswith(chosen_isa()) for isa in BFLOAT16.get(FAMILY, ()))


def multiplies(dtype: torch.dtype) -> bool:
    """Return whether `linear` takes this dtype on the instruction set in use."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.scanlab_mixer.multiplies_bfloat16()))


def packed(weight: PrepackedWeight) -> Tensor:
    """Return the form that the native products read, the same on every instruction set."""
    return weight.form("native", extension.ops.pack_linear)


def linear(x: Tensor, weight: PrepackedWeight, bias: Tensor | None) -> Tensor:
    """Return x weight^T + bias."""
    out: Tensor = extension.ops.packed_linear(x, packed(weight), bias, weight.weight.shape[0])
    return out


def few_rows(x: Tensor, weight: PrepackedWeight, bias: Tensor | None) -> Tensor:
    """Return x weight^T + bias for a few rows of float32, as fast as the weight comes out of memory."""
    out: Tensor = extension.ops.gemv(x.reshape(-1, x.shape[-1]), weight.weight, bias)
    return out.view(*x.shape[:-1], weight.weight.shape[0])


backend = Backend(
    name="linear_native",
    summary="C++ with a prepacked weight, panels of 48 features in registers",
    rank=4,
    sources=(*SOURCES, FOLDER / "bfloat16.cpp"),
    space=Space((threads_tunable(),)),
    capabilities=LinearCapabilities(dtypes=("float32", "bfloat16") if HAS_BFLOAT16 else ("float32",)),
    make=maker(linear, extension.load),
    unavailable=extension.unavailable,
    op="linear",
)
gemv = Backend(
    name="linear_gemv",
    summary="C++ for few rows of float32, the weight read once",
    rank=3,
    sources=SOURCES,
    space=Space((threads_tunable(),)),
    capabilities=LinearCapabilities(max_rows=MAX_FEW_ROWS),
    make=maker(few_rows, extension.load),
    unavailable=extension.unavailable,
    op="linear",
)
