"""Cross scans and merges of `csm_triton.py`, a file of VMamba that most models built on it have a copy of, on the CPU.

Until VMamba@f479b4a its classes launch Triton kernels for every tensor; since then they choose by the device.

Shape:
    A map is (batch, dim, height, width), a scan (batch, 4, dim, height * width): by rows, by columns, and both
    reversed. channel_first=False puts dim last in a map, and in the result of a merge.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def cross_scan(x: Tensor, channel_first: bool = True) -> Tensor:
    """Return the scan of a map."""
    x = x if channel_first else x.movedim(-1, 1)
    forward = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], 1)
    return torch.cat([forward, forward.flip(-1)], 1)


def cross_scan_1b1(x: Tensor, channel_first: bool = True) -> Tensor:
    """Return the scan of four maps (batch, 4, dim, height, width), each by its own order."""
    rows, columns, rows_reversed, columns_reversed = (x if channel_first else x.permute(0, 3, 4, 1, 2)).unbind(1)
    forward = [rows.flatten(2), columns.transpose(2, 3).flatten(2)]
    reverse = [rows_reversed.flatten(2).flip(-1), columns_reversed.transpose(2, 3).flatten(2).flip(-1)]
    return torch.stack(forward + reverse, 1)


def cross_merge(y: Tensor, channel_first: bool = True) -> Tensor:
    """Return (batch, dim, height * width), the sum of a scan (batch, 4, dim, height, width) in the order of rows."""
    height, width = y.shape[-2:]
    y = y.flatten(3)
    rows, columns = (y[:, :2] + y[:, 2:].flip(-1)).unbind(1)
    merged: Tensor = rows + columns.unflatten(-1, (width, height)).transpose(-1, -2).flatten(-2)
    return merged if channel_first else merged.transpose(1, 2)


SERVED: dict[str, Callable[..., Tensor]] = {
    f"{name}{suffix}": function
    for suffix in ("", "F")
    for name, function in (
        ("CrossScanTriton", cross_scan),
        ("CrossMergeTriton", cross_merge),
        ("CrossScanTriton1b1", cross_scan_1b1),
    )
}


def wrap(module: ModuleType) -> None:
    """Let the autograd functions of a copy of csm_triton compute in PyTorch for tensors on the CPU."""
    for name, ours in SERVED.items():
        theirs: Any = vars(module).get(name)
        # those with the parameter `scans` are of VMamba since then
        if theirs is not None and "scans" not in inspect.signature(theirs.forward).parameters:
            setattr(module, name, _by_device(theirs, ours))


def _by_device(theirs: Any, ours: Callable[..., Tensor]) -> type:
    def apply(x: Tensor, *args: Any) -> Any:
        return (ours if x.is_cpu else theirs.apply)(x, *args)

    return type(theirs.__name__, (theirs,), {"__module__": theirs.__module__, "apply": staticmethod(apply)})
