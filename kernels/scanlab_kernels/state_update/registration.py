"""Shapes of the decoding steps' results, for their C++ and their Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scanlab_kernels.cpu.registration import MIXER_CURE, ignore_gradients, register_shapes


def empty_output(state: Tensor, x: Tensor, *rest: Any) -> Tensor:
    """Return an empty tensor like x."""
    return torch.empty_like(x)


def empty_mixer_output(projected: Tensor, *rest: Any) -> Tensor:
    """Return an empty tensor of half the width of `projected`."""
    return projected.new_empty((projected.shape[0], projected.shape[1] // 2))


def register() -> None:
    """Register gradients and shapes of the C++ ops."""
    ops = torch.ops.scanlab_mixer
    register_shapes(ops.selective_state_update.default, empty_output)
    register_shapes(ops.mixer_step.default, empty_mixer_output)
    ignore_gradients(ops.selective_state_update.default, MIXER_CURE)
    ignore_gradients(ops.mixer_step.default, MIXER_CURE)
