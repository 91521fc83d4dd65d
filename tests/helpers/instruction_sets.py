"""The instruction sets of this machine, and what the mixer's tests compare with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from scanlab_kernels.cpu.extension import load, use_isa
from scanlab_kernels.cpu.isa import AMX, multiplies_bfloat16, supported_isas

INSTRUCTION_SETS = supported_isas()
# those that products differ on
PRODUCT_SETS = (*INSTRUCTION_SETS, *[AMX.name] * AMX.is_supported())
BFLOAT16_SETS = tuple(filter(multiplies_bfloat16, PRODUCT_SETS))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# largest error as a share of the largest value: a few roundings of the arithmetic, one of the storage
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-13, torch.bfloat16: 6e-3, torch.float16: 1e-3}


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Hold the native ops to one instruction set; afterwards to the one of the process again."""
    use_isa(name)
    try:
        yield
    finally:
        load()


def error(got: Tensor, want: Tensor, least: float = 0.0) -> float:
    """The largest error as a share of the largest value or of `least`; of shapes that differ, infinity."""
    if got.shape != want.shape:
        return float("inf")
    if got.numel() == 0:
        return 0.0
    got, want = got.detach().double(), want.detach().double()
    largest = max(least, float(want.abs().max()))
    return float((got - want).abs().max()) / (largest if largest > 0 else 1.0)


def assert_close(
    got: Sequence[Tensor], want: Sequence[Tensor], names: Sequence[str], tolerance: float, least: float = 0.0
) -> None:
    """Each of `got` is as `want` within the tolerance, or that of its own storage; NaN is not.

    Args:
        least: What values are at least compared with, where sums of numbers of this size may cancel.
    """
    for name, one, other in zip(names, got, want, strict=True):
        off = error(one, other, least)
        assert off <= max(tolerance, TOLERANCES[one.dtype]), f"{name} is off by {off:.1e}"


def wide(tensor: Tensor | None) -> Any:
    """Return the numbers in float64, as a leaf; integers and None as they are."""
    if tensor is None or not tensor.is_floating_point():
        return tensor
    return tensor.detach().double().requires_grad_(tensor.requires_grad)


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], seeds: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the inputs, the gradients of the outputs being `seeds`."""
    return list(
        torch.autograd.grad(outputs, inputs, [seed.to(out.dtype) for seed, out in zip(seeds, outputs, strict=True)])
    )
