"""Compare the functions of a copy of mamba_ssm with scanlab's, on small inputs, before scanlab's serve in their place.

Copies keep the names and change the mathematics: another first state, another term. Such a function is called as it is;
what it calls in the end, the compiled modules, is served by scanlab.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("scanlab")

CHECKED = ("selective_scan_fn", "mamba_inner_fn", "mamba_inner_fn_no_out_proj", "bimamba_inner_fn")
BATCH, DIM, STATE, RANK, LENGTH, WIDTH, OUT = 2, 8, 4, 2, 12, 4, 6
SHAPES = {
    **dict.fromkeys(("u", "delta", "z"), (BATCH, DIM, LENGTH)),
    **dict.fromkeys(("B", "C"), (BATCH, STATE, LENGTH)),
    **dict.fromkeys(("A", "A_b"), (DIM, STATE)),
    **dict.fromkeys(("D", "delta_bias", "conv1d_bias"), (DIM,)),
    "xz": (BATCH, 2 * DIM, LENGTH),
    "conv1d_weight": (DIM, 1, WIDTH),
    "x_proj_weight": (RANK + 2 * STATE, DIM),
    "delta_proj_weight": (DIM, RANK),
    "out_proj_weight": (OUT, DIM),
}
TOLERANCE = 1e-3  # of the largest value; float32 errs by 1e-6


def agrees(theirs: Callable[..., Any], ours: Callable[..., Any]) -> bool:
    """Return False where `theirs` has other results or gradients than `ours`; functions not in CHECKED agree.

    A function that cannot run on the CPU agrees too: what it computes cannot be seen here.
    """
    if ours.__name__ not in CHECKED:
        return True
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        arguments = _arguments(theirs)
        try:
            got = _results(theirs, arguments)
        except Exception:  # noqa: BLE001  # any error of code made for CUDA
            return True
        wanted = _results(ours, arguments)
    same = len(got) == len(wanted) and all(_is_close(*each) for each in zip(got, wanted, strict=True))
    if not same:
        log.warning(
            "scanlab: %s.%s computes something else than mamba_ssm's function of that name; it is called as it is.",
            theirs.__module__,
            theirs.__name__,
        )
    return same


def _arguments(function: Callable[..., Any]) -> dict[str, Any]:
    """Return arguments by name, for an inner function without B and C, which it computes itself, and without a bias.

    Upstream's gradient of the bias has no shape, which autograd refuses; that of xz in bimamba_inner_fn lacks a part,
    and is not asked for.
    """
    names = inspect.signature(function).parameters.keys()
    drawn = torch.Generator().manual_seed(0)
    found: dict[str, Any] = {"delta_softplus": True, **({"out_proj_bias": None} if "out_proj_bias" in names else {})}
    for name, shape in SHAPES.items():
        if name in names and not (name in ("B", "C") and "xz" in names):
            value = torch.randn(shape, generator=drawn, dtype=torch.float32, device="cpu")
            value = -value.abs() - 0.1 if name in ("A", "A_b") else value
            found[name] = value.requires_grad_(name != "xz" or "A_b" not in names)
    return found


def _results(function: Callable[..., Any], arguments: dict[str, Any]) -> list[Tensor]:
    """Return the output and its gradients, or nothing where the output is not a tensor."""
    out = function(**arguments)
    leaves = [each for each in arguments.values() if isinstance(each, Tensor) and each.requires_grad]
    return [out, *torch.autograd.grad(out.square().sum(), leaves)] if isinstance(out, Tensor) else []


def _is_close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= TOLERANCE * other.abs().max())
