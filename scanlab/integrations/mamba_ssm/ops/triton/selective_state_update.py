"""Decoding step of the scan under the names of `mamba_ssm.ops.triton.selective_state_update`.

Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/triton/selective_state_update.py.
"""

from __future__ import annotations

from torch import Tensor

from scanlab.runtime import ops as mixer
from scanlab.runtime.ops import selective_state_update

__all__ = ["selective_state_update", "selective_state_update_ref"]


def selective_state_update_ref(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """Return `selective_state_update` in plain PyTorch; without state_batch_indices, as upstream."""
    with mixer.in_torch():
        return mixer.selective_state_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
