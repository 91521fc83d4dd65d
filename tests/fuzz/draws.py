"""Seeded random numbers, sizes, tensors and memory layouts."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("dense", "gaps", "permuted", "inside", "offset", "expanded", "negated")
SPECIALS = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-40, 1e-30, -30.0, 88.0)


class Draw(random.Random):
    """A source of random values; the same seed draws the same values."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def pick(self, values: Sequence[Value]) -> Value:
        """Return one of the values."""
        return values[self.randrange(len(values))]

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.random() < probability

    def size(self, most: int = 20, odd: Sequence[int] = ()) -> int:
        """Return a size from 1 to `most`, or one of the odd ones."""
        return self.pick(odd) if odd and self.chance(0.3) else self.randint(1, most)

    def dtype(self) -> torch.dtype:
        """Return a floating dtype, float32 as often as the three others."""
        return torch.float32 if self.chance(0.5) else self.pick(FLOATING[1:])

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        """Return normal random numbers."""
        return (torch.randn(shape, generator=self.generator) * scale + mean).to(dtype)

    def uniform(  # type: ignore[override]
        self, low: float, high: float, *shape: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return uniform random numbers."""
        return (torch.rand(shape, generator=self.generator) * (high - low) + low).to(dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Return random int32 numbers from low to high, both included."""
        return torch.randint(low, high + 1, shape, generator=self.generator, dtype=torch.int32)

    def maybe(self, value: Value, probability: float = 0.6) -> Value | None:
        """Return `value` with this probability, else None."""
        return value if self.chance(probability) else None

    def lay(self, tensor: Tensor, layout: str | None = None) -> Tensor:
        """Return a tensor of the same shape in another memory layout, with NaN in the memory around its elements.

        The values are the same, but for "expanded", which repeats the first along one axis.
        """
        layout = layout or self.pick(LAYOUTS)
        if layout == "negated":
            return negated(tensor) if tensor.is_floating_point() else tensor
        if layout == "expanded":
            axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
            return tensor.narrow(self.pick(axes), 0, 1).expand(tensor.shape) if axes else tensor
        if layout == "permuted":
            axes = self.sample(range(tensor.dim()), tensor.dim())
            inverse = [axes.index(axis) for axis in range(tensor.dim())]
            return tensor.permute(axes).contiguous().permute(inverse)
        if layout == "gaps" and tensor.dim():
            step = self.randint(2, 3)
            wide = filled(*tensor.shape[:-1], tensor.shape[-1] * step, like=tensor)[..., ::step]
        elif layout == "inside" and tensor.dim():
            before, after = self.randint(1, 9), self.randint(0, 9)
            whole = filled(*tensor.shape[:-1], before + tensor.shape[-1] + after, like=tensor)
            wide = whole.narrow(-1, before, tensor.shape[-1])
        elif layout == "offset":
            offset = self.randint(1, 7)
            wide = filled(tensor.numel() + offset + 8, like=tensor)[offset : offset + tensor.numel()].view(tensor.shape)
        else:
            return tensor
        return wide.copy_(tensor)

    def lay_state(self, tensor: Tensor) -> Tensor:
        """Return `tensor` in a layout whose elements have an address each, so that it may be written."""
        return self.lay(tensor, self.pick(("dense", "gaps", "permuted", "inside", "offset")))

    def spoil(self, tensor: Tensor, share: float = 0.1) -> Tensor:
        """Return a copy with some special values among the others."""
        copy = tensor.clone(memory_format=torch.contiguous_format)
        if not tensor.is_floating_point() or not tensor.numel():
            return copy
        for _ in range(max(1, int(share * copy.numel()))):
            copy[tuple(self.randrange(size) for size in copy.shape)] = self.pick(SPECIALS)
        return copy


def filled(*shape: int, like: Tensor) -> Tensor:
    """Return a tensor of NaN, or of a large number where there is no NaN."""
    return torch.full(shape, math.nan if like.is_floating_point() or like.is_complex() else 10**6, dtype=like.dtype)


def negated(tensor: Tensor) -> Tensor:
    """Return a tensor of the same values whose memory holds the negated ones, as the imaginary part of a conjugate."""
    return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag if _has_complex(tensor) else tensor


def _has_complex(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float32, torch.float64)
