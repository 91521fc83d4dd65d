"""Make state-space models fast on the machine at hand: verify, measure, choose, serve.

from scanlab import selective_scan_fn        # the upstream signature, on the backend chosen for this machine
scanlab.explain()                            # which backend served which problem, and why
scanlab.vim_tiny(scan="native")              # Vision Mamba on a backend of your choice
scanlab.vmamba_tiny()                        # VMamba, by the op that scans feature maps
scanlab.patch(model)                         # let a model of transformers compute with these ops
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scanlab.contract import forks as forks  # remembers forks from here on

if TYPE_CHECKING:
    from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
    from scanlab.integrations.transformers import patch
    from scanlab.models.vision_mamba import (
        VisionMamba,
        vim_base,
        vim_small,
        vim_small_stride8,
        vim_tiny,
        vim_tiny_stride8,
    )
    from scanlab.models.vmamba import VMamba, vmamba_base, vmamba_small, vmamba_tiny
    from scanlab.runtime.dispatch import explain, selective_scan_fn

__version__ = "0.2.0"

__all__ = [
    "ScanInputs",
    "ScanOutput",
    "ScanProblem",
    "VMamba",
    "VisionMamba",
    "explain",
    "patch",
    "selective_scan_fn",
    "serve",
    "vim_base",
    "vim_small",
    "vim_small_stride8",
    "vim_tiny",
    "vim_tiny_stride8",
    "vmamba_base",
    "vmamba_small",
    "vmamba_tiny",
]

_HOMES = {
    "scanlab.contract.problem": ("ScanInputs", "ScanOutput", "ScanProblem"),
    "scanlab.integrations.transformers": ("patch",),
    "scanlab.runtime.dispatch": ("explain", "selective_scan_fn", "serve"),
    "scanlab.models.vmamba": ("VMamba", "vmamba_base", "vmamba_small", "vmamba_tiny"),
}


def __getattr__(name: str) -> Any:
    # Each name is imported on first use: a caller of the scan alone does not pay for the model.
    if name not in __all__:
        raise AttributeError(f"module 'scanlab' has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "scanlab.models.vision_mamba")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted((*__all__, *(name for name in globals() if name.startswith("__"))))
