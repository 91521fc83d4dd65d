"""scanlab makes the Mamba selective scan fast on the machine you have, proves it, and puts the winner to work.

from scanlab import selective_scan_fn        # the upstream signature, on the backend chosen for this machine
scanlab.explain()                            # which backend served which problem, and why
scanlab.vim_tiny(scan="native")              # Vision Mamba on a backend of your choice
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scanlab.deploy.dispatch import selective_scan_fn
    from scanlab.explanation import explain
    from scanlab.models.vision_mamba import (
        VisionMamba,
        vim_base,
        vim_small,
        vim_small_stride8,
        vim_tiny,
        vim_tiny_stride8,
    )
    from scanlab.problem import ScanInputs, ScanOutput, ScanProblem

__version__ = "0.1.0"

__all__ = [
    "ScanInputs",
    "ScanOutput",
    "ScanProblem",
    "VisionMamba",
    "explain",
    "selective_scan_fn",
    "vim_base",
    "vim_small",
    "vim_small_stride8",
    "vim_tiny",
    "vim_tiny_stride8",
]

_HOMES = {
    "scanlab.problem": ("ScanInputs", "ScanOutput", "ScanProblem"),
    "scanlab.deploy.dispatch": ("selective_scan_fn",),
    "scanlab.explanation": ("explain",),
}


def __getattr__(name: str) -> Any:
    # Each name is imported on first use: a caller of the scan alone does not pay for the model.
    if name not in __all__:
        raise AttributeError(f"module 'scanlab' has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "scanlab.models.vision_mamba")
    return getattr(importlib.import_module(home), name)
