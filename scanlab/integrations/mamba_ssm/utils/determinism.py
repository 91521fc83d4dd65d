"""The switch of `mamba_ssm.utils.determinism`; on a CPU nothing depends on it, for the same call gives the same bits.

Source: state-spaces/mamba@e9594ce, mamba_ssm/utils/determinism.py.
"""

from __future__ import annotations

import torch

_chosen: bool | None = None


def use_deterministic_mode() -> bool:
    """Return what was set, and where nothing was, what torch.use_deterministic_algorithms says."""
    return torch.are_deterministic_algorithms_enabled() if _chosen is None else _chosen


def set_deterministic_mode(value: bool | None) -> None:
    """Set what `use_deterministic_mode` returns; None leaves it to torch."""
    global _chosen
    _chosen = value
