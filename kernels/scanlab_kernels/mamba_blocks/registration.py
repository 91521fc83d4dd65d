"""The refusal of gradients of the op that runs the blocks of a model."""

from __future__ import annotations

import torch

from scanlab_kernels.cpu.registration import MIXER_CURE, refuse_gradients


def register() -> None:
    """Register that the C++ op has no gradients."""
    refuse_gradients(torch.ops.scanlab_mixer.run_blocks.default, MIXER_CURE)
