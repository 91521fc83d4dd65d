"""Which implementation of the mixer's ops serves: for each kind of device its own, where it can run, else PyTorch.

On the CPU that is native C++, on a GPU Triton. The environment variable SCANLAB_MIXER (native, triton, torch) names
one instead: `torch` serves every device, and one of the others has to serve its own. It is read at the first use in a
process. Triton's interpreter, which proves the GPU kernels on the CPU, serves only under SCANLAB_MIXER=triton.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from scanlab.errors import ConfigError, UnavailableError
from scanlab_kernels.cpu import extension as native
from scanlab_kernels.gpu import version as triton_version
from scanlab_kernels.selective_scan.triton import backend as triton

log = logging.getLogger("scanlab")

ENV_MIXER = "SCANLAB_MIXER"
ENV_STRICT = "SCANLAB_STRICT"

Implementation = Literal["native", "triton", "torch"]


class Decision(NamedTuple):
    """What serves the tensors of a kind of device, and why."""

    implementation: Implementation
    reason: str


_chosen: dict[tuple[str, bool], Decision] = {}
_only_torch = ContextVar("_only_torch", default=False)


def load_triton() -> str:
    """Load the GPU ops and say what they are; raises UnavailableError where no Triton kernel runs here."""
    reason = triton.unavailable()
    if reason is not None:
        raise UnavailableError(f"triton cannot run here: {reason}")
    if triton.INTERPRETED:
        triton_version.prepare_interpreter()
    from scanlab_kernels.gpu import ops as triton_ops  # only where they serve: it imports the package triton

    return "Triton, interpreted on the CPU" if triton_ops.KEY == "CPU" else "Triton"


LOADERS = {"native": native.load, "triton": load_triton}


def implementation(device: str = "cpu", double: bool = False) -> Implementation:
    """What serves tensors on this kind of device in this process; the first time it is loaded, which is said.

    double  whether one of the tensors is float64

    Raises UnavailableError where what SCANLAB_MIXER names cannot serve its device, or under SCANLAB_STRICT=1 where
    PyTorch would have to stand in; ConfigError where SCANLAB_MIXER or SCANLAB_ISA hold something else than they may.
    """
    key = device, double
    chosen = _chosen.get(key)
    if chosen is None:
        chosen = _chosen[key] = _choose(device, double)
    return chosen.implementation


def _choose(device: str, double: bool) -> Decision:
    asked = os.environ.get(ENV_MIXER)
    if asked not in (None, "torch", *LOADERS):
        raise ConfigError(
            f"{ENV_MIXER}={asked!r}: must be 'native', 'triton' or 'torch'; unset it to let scanlab choose."
        )
    noun = f"the mixer's ops on {device}" + (" in float64" if double else "")
    own: Literal["native", "triton"] | None = {"cpu": "native", "cuda": "triton"}.get(device)  # type: ignore[assignment]
    if device == "cpu" and asked == "triton" and triton.INTERPRETED:
        own = "triton"
    if asked == "torch" or own is None:
        why = f"{ENV_MIXER}=torch" if asked == "torch" else "no other implementation is for this device"
        log.info("%s run in PyTorch: %s", noun, why)
        return Decision("torch", f"PyTorch: {why}")
    try:
        if device == "cuda" and triton.INTERPRETED:
            raise UnavailableError("triton runs its kernels in its interpreter, on the CPU; unset TRITON_INTERPRET.")
        if own == "triton" and double:
            raise UnavailableError("the GPU kernels compute in float32; give them float32, bfloat16 or float16.")
        what = LOADERS[own]()
    except UnavailableError as error:
        if asked == own or os.environ.get(ENV_STRICT) == "1":
            raise
        log.warning("%s run in PyTorch, several times slower: %s", noun, error)
        return Decision("torch", f"PyTorch: {error}")
    log.info("%s run in %s", noun, what)
    return Decision(own, what)


def explain() -> str:
    """What the mixer's ops run on so far in this process, and why; a line for each kind of device."""
    return "\n".join(
        f"the mixer's ops on {device}{', float64' if double else ''}: {choice.reason}"
        for (device, double), choice in _chosen.items()
    )


def forget() -> None:
    """Drop what was chosen, so that the environment is read again."""
    _chosen.clear()


@contextmanager
def in_torch() -> Iterator[None]:
    """Run the mixer's ops in PyTorch inside this block: for one forward pass, building takes longer than it saves."""
    token = _only_torch.set(True)
    try:
        yield
    finally:
        _only_torch.reset(token)


def serving(device: str, double: bool = False) -> Implementation:
    """What serves tensors on this kind of device here and now."""
    return "torch" if _only_torch.get() else implementation(device, double)


def is_native() -> bool:
    """Whether the native ops serve CPU tensors here and now."""
    return serving("cpu") == "native"


def ops_for(*tensors: Tensor) -> Any:
    """The ops that take these tensors, which lie on one device, or None where PyTorch serves.

    The native ones and those of the GPU have the same names and arguments.
    """
    first = tensors[0]
    device = "cpu" if first.is_cpu else first.device.type  # a step on the CPU is worth saving a microsecond
    if torch.compiler.is_compiling():
        # Imported by the trace itself: what marks a constant loads the compiler, which takes seconds.
        from scanlab.runtime.traced import serving as decided
    else:
        decided = serving
    found = decided(device)
    if found == "triton" and torch.float64 in [tensor.dtype for tensor in tensors]:
        found = decided(device, True)
    if found == "native":
        return torch.ops.scanlab_mixer
    return torch.ops.scanlab_mixer_triton if found == "triton" else None
