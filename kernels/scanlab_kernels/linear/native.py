"""The linear layer by the C++ kernels of this package: a product with a prepacked weight, and one for few rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from scanlab.contract.backend import Backend, OpCapabilities
from scanlab.contract.base import Problem
from scanlab.contract.cpu import threads_tunable
from scanlab.contract.space import Space
from scanlab_kernels.build import PACKAGE, headers
from scanlab_kernels.cpu import extension
from scanlab_kernels.cpu.isa import chosen_isa, multiplies_bfloat16
from scanlab_kernels.linear.prepacked import LinearCapabilities, maker
from scanlab_kernels.linear.weights import PrepackedWeight

# Beyond, a product of `few_rows` reads the weight more than once and gains nothing.
MAX_FEW_ROWS = 8
FOLDER = Path(__file__).parent
SOURCES = (Path(__file__), *headers(FOLDER), *headers(PACKAGE / "cpu"), FOLDER / "native.cpp")


@dataclass(frozen=True)
class PackedCapabilities(OpCapabilities):
    """The problems that packed products can solve: those in bfloat16 where the instruction set in use has them."""

    dtypes: tuple[str, ...] = ("float32", "bfloat16")

    def rejects(self, problem: Problem) -> str | None:
        """Return why a backend with these capabilities cannot solve `problem`, or None."""
        reason = super().rejects(problem)
        if reason is None and problem.dtype == "bfloat16" and not multiplies_bfloat16(chosen_isa()):
            return f"dtype bfloat16: the instruction set {chosen_isa()} of this machine has no products of it"
        return reason


def packed(weight: PrepackedWeight) -> Tensor:
    """Return the form that the native products read, the same on every instruction set."""
    return weight.form("native", extension.ops.pack_linear)


def linear(x: Tensor, weight: PrepackedWeight, bias: Tensor | None) -> Tensor:
    """Return x weight^T + bias."""
    out: Tensor = extension.ops.packed_linear(x, packed(weight), bias, weight.weight.shape[0])
    return out


def few_rows(x: Tensor, weight: PrepackedWeight, bias: Tensor | None) -> Tensor:
    """Return x weight^T + bias for a few rows, as fast as the weight comes out of memory."""
    out: Tensor = extension.ops.gemv(x.reshape(-1, x.shape[-1]), weight.weight, bias)
    return out.view(*x.shape[:-1], weight.weight.shape[0])


backend = Backend(
    name="linear_native",
    summary="C++ with a prepacked weight, panels of 48 features in registers",
    rank=4,
    sources=(*SOURCES, FOLDER / "bfloat16.cpp"),
    space=Space((threads_tunable(),)),
    capabilities=PackedCapabilities(),
    make=maker(linear, extension.load),
    unavailable=extension.unavailable,
    op="linear",
)
gemv = Backend(
    name="linear_gemv",
    summary="C++ for few rows, the weight read once",
    rank=3,
    sources=SOURCES,
    space=Space((threads_tunable(),)),
    capabilities=LinearCapabilities(dtypes=("float32", "bfloat16", "float16"), max_rows=MAX_FEW_ROWS),
    make=maker(few_rows, extension.load),
    unavailable=extension.unavailable,
    op="linear",
)
