"""Functions of the packages `selective_scan`, `selective_scan_vmamba` and `selective_scan_vmamba_pt202`.

Source: MzeroMiko/VMamba, selective_scan/selective_scan/selective_scan_interface.py of its first releases.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor

from scanlab.integrations.mamba_ssm.ops import selective_scan_interface as mamba_ssm


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    nrows: int = 1,
) -> Tensor:
    """Return mamba_ssm's `selective_scan_fn` without a gate; nrows, a size of the CUDA kernel, changes no value."""
    return cast(Tensor, mamba_ssm.selective_scan_fn(u, delta, A, B, C, D, None, delta_bias, delta_softplus))


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Return the same from the reference loop."""
    return cast(Tensor, mamba_ssm.selective_scan_ref(u, delta, A, B, C, D, None, delta_bias, delta_softplus))
