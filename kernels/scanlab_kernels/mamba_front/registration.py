"""Shapes of the fused front of a Mamba block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scanlab_kernels.cpu.registration import MIXER_CURE, refuse_gradients, register_shapes


def empty_outputs(hidden: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Return empty tensors like the outputs; without elements where there is one direction."""
    weight, weight_reverse, selected = rest[4], rest[8], rest[-1]
    batch, length, _ = hidden.shape
    dim = weight.shape[0]
    outputs = [hidden.new_empty((batch, length, size)) for size in (dim, dim, selected, dim)]
    if weight_reverse is None:
        return (*outputs, *(hidden.new_empty(0) for _ in range(3)))
    return (*outputs, *(hidden.new_empty((batch, length, size)) for size in (dim, selected, dim)))


def register() -> None:
    """Register gradients and shapes of the C++ op."""
    op = torch.ops.scanlab_mixer.mamba_front.default
    register_shapes(op, empty_outputs)
    refuse_gradients(op, MIXER_CURE)
