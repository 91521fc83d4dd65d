"""Blocks of a model that are bound to their weights, so that one native op runs all of them.

The op calls the native ops that serve each block, and MKL's product where that serves: its results are theirs, bit for
bit. What it saves is the time of Python between them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scanlab.contract.space import Config
from scanlab_kernels.cpu import extension
from scanlab_kernels.linear import mkl, native
from scanlab_kernels.linear.weights import PrepackedWeight, dense_bias
from scanlab_kernels.mamba_front.native import op_arguments
from scanlab_kernels.mamba_front.weights import FrontWeights
from scanlab_kernels.selective_scan.native.backend import op_settings


class NormParts(NamedTuple):
    """Arguments of `add_norm` beside its rows: weight and bias (model,), epsilon, and the kinds of norm and sum."""

    weight: Tensor
    bias: Tensor | None
    eps: float
    kind: Literal["rms", "layer"]
    residual_in_fp32: bool


Product = Literal["mkl", "native"]


class OutParts(NamedTuple):
    """Output projection (model, dim) of so many rows, and the product that serves it."""

    weight: PrepackedWeight
    bias: Tensor | None
    rows: int
    product: Product


class BoundBlock:
    """Block that the native op calls by its number, for as long as this object lives.

    Args:
        norm: The norm before the mixer.
        front: Weights of the front.
        scans: A (dim, state), D and delta_bias (dim,) of the scan of each direction that the front has.
        scan_config: Configuration of the native scan.
        out: The output projection.
    """

    def __init__(
        self,
        norm: NormParts,
        front: FrontWeights,
        scans: Sequence[tuple[Tensor, Tensor, Tensor]],
        scan_config: Config,
        out: OutParts,
    ) -> None:
        both: list[Tensor | None] = [tensor for scan in scans for tensor in scan]
        both += [None] * (6 - len(both))
        weight, bias, eps, kind, wide_total = self.norm = norm
        self.number: int = torch.ops.scanlab_mixer.bind_block(
            weight,
            bias,
            eps,
            kind == "layer",
            wide_total,
            *op_arguments(front),
            *both,
            *_product(out),
            *op_settings(scan_config),
        )
        self._release = torch.ops.scanlab_mixer.release_block

    def has_norm(self, norm: NormParts) -> bool:
        """Return whether the block was bound with the very parts of this norm."""
        return all(map(operator.is_, self.norm, norm))

    def __del__(self) -> None:
        if hasattr(self, "_release"):
            self._release(self.number)


def _product(out: OutParts) -> tuple[Tensor | int | None, ...]:
    weight, bias, rows, product = out
    features = weight.weight.shape[0]
    if product == "native":
        return native.packed(weight), None, bias, features, 0
    form = mkl.packed(weight, rows)
    assert form is not None, "the product before kept another form"
    return form, weight.weight, dense_bias(bias, weight.weight), features, rows


def run_blocks(blocks: Sequence[BoundBlock], hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return hidden and residual (batch, length, model) after these blocks, the first of which has no residual."""
    numbers = torch.tensor([block.number for block in blocks], dtype=torch.int32, device="cpu")
    found: tuple[Tensor, Tensor] = extension.ops.run_blocks(numbers, hidden, None)
    return found
