"""Choose the implementation of the ops around the scan: for each kind of device its own where it runs, else PyTorch.

On the CPU that is native C++, on a GPU Triton. $SCANLAB_MIXER (native, triton, torch) names one instead: `torch`
serves every device, each of the others its own. Products of inference are chosen by silicon, see `products`.
Triton's interpreter, which verifies the GPU kernels on the CPU, serves only under SCANLAB_MIXER=triton.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from scanlab import settings
from scanlab.errors import ConfigError, UnavailableError, did_you_mean
from scanlab.runtime import verification
from scanlab.runtime.traced import exports_to_onnx
from scanlab_kernels.implementations import BY_NAME
from scanlab_kernels.implementations import Name as Implementation
from scanlab_kernels.selective_scan.triton import backend as triton

log = logging.getLogger("scanlab")


class OpDecision(NamedTuple):
    """Implementation of the ops on a kind of device, and the reason."""

    implementation: Implementation
    reason: str


_decided: dict[tuple[str, bool], OpDecision] = {}
_in_torch = ContextVar("_in_torch", default=False)


LOADERS = {name: each.load for name, each in BY_NAME.items() if name != "torch"}


def implementation(device: str = "cpu", double: bool = False) -> Implementation:
    """Return the implementation that serves tensors on this kind of device here and now.

    It is chosen, loaded and logged at its first use in a process.

    Args:
        device: Type of the device, such as "cpu".
        double: Whether one of the tensors is float64.

    Raises:
        UnavailableError: The implementation that SCANLAB_MIXER names cannot serve its device, or PyTorch would have
            to stand in under SCANLAB_STRICT=1.
        ConfigError: SCANLAB_MIXER or SCANLAB_ISA has an illegal value.
    """
    if _in_torch.get() or exports_to_onnx():
        return "torch"
    decision = _decided.get((device, double))
    if decision is None:
        decision = _decided[device, double] = _decide(device, double)
    return decision.implementation


# Compiled code takes the choice for a constant. `torch.compiler.assume_constant_result` sets this attribute too, and
# imports the compiler, which takes seconds.
implementation._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _decide(device: str, double: bool) -> OpDecision:
    asked = settings.MIXER.get()
    if asked not in (None, "torch", *LOADERS):
        raise ConfigError(
            f"{settings.MIXER.name}={asked!r}: must be 'native', 'triton' or 'torch'; unset it to let scanlab choose."
            f"{did_you_mean(str(asked), ('torch', *LOADERS))}"
        )
    noun = f"the mixer's ops on {device}" + (" in float64" if double else "")
    own: Literal["native", "triton"] | None = None
    if device == "cuda" or (device == "cpu" and asked == "triton" and triton.INTERPRETED):
        own = "triton"
    elif device == "cpu":
        own = "native"
    if asked == "torch" or own is None:
        why = f"{settings.MIXER.name}=torch" if asked == "torch" else "no other implementation is for this device"
        log.info("%s run in PyTorch: %s", noun, why)
        return OpDecision("torch", f"PyTorch: {why}")
    try:
        if device == "cuda" and triton.INTERPRETED:
            raise UnavailableError("triton runs its kernels in its interpreter, on the CPU; unset TRITON_INTERPRET.")
        if own == "triton" and double:
            raise UnavailableError("the GPU kernels compute in float32; give them float32, bfloat16 or float16.")
        what = LOADERS[own]()
        if device == "cuda":
            refusal = verification.ops_disagreement(torch.ops.scanlab_mixer_triton, "triton", device)
            if refusal is not None:
                log.error("scanlab: refused: %s.", refusal)
                raise UnavailableError(refusal)
    except UnavailableError as error:
        if asked == own or settings.strict():
            raise
        log.warning("%s run in PyTorch, several times slower: %s", noun, error)
        return OpDecision("torch", f"PyTorch: {error}")
    log.info("%s run in %s", noun, what)
    return OpDecision(own, what)


def ops_for(*tensors: Tensor) -> Any:
    """Return the ops that serve these tensors, which are on one device.

    All implementations have the same names and arguments: those of `torch.ops.scanlab_mixer`.
    """
    first = tensors[0]
    device = "cpu" if first.is_cpu else first.device.type
    found = implementation(device)
    if found == "triton" and torch.float64 in [tensor.dtype for tensor in tensors]:
        found = implementation(device, True)
    return BY_NAME[found].ops()


def explain() -> str:
    """Return a line for each kind of device whose ops were served in this process: the implementation, and why."""
    return "\n".join(
        f"the mixer's ops on {device}{', float64' if double else ''}: {decision.reason}"
        for (device, double), decision in dict(_decided).items()
    )


def clear() -> None:
    """Drop the decisions, so that the environment is read again."""
    _decided.clear()


def is_in_torch() -> bool:
    """Return whether this is inside a block of `in_torch`."""
    return _in_torch.get()


@contextmanager
def in_torch() -> Iterator[None]:
    """Run the ops in PyTorch inside this block, as for a single forward pass, which is over before a build would be."""
    token = _in_torch.set(True)
    try:
        yield
    finally:
        _in_torch.reset(token)
