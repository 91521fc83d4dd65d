"""Choose the implementation of the products of inference by what was measured on this kind of silicon.

Where nothing was measured, torch multiplies: no default is slower than torch's own op on a machine where that was not
measured. $SCANLAB_LINEAR (native, onednn, torch) names an implementation instead.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scanlab import settings
from scanlab.contract.machine import Silicon, this_machine
from scanlab.errors import ConfigError
from scanlab.runtime.implementations import implementation
from scanlab.runtime.traced import is_traced
from scanlab_kernels.linear import native, onednn
from scanlab_kernels.linear import torch as by_torch
from scanlab_kernels.linear.prepacked import Linear
from scanlab_kernels.linear.weights import PrepackedWeight, is_plain

Name = Literal["native", "onednn", "torch"]
# Below, no implementation gains from a prepacked form.
MIN_ROWS = 32
NAMES = ("native", "onednn", "torch")
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class MeasuredProducts:
    """Fastest implementation of products on one kind of silicon.

    Args:
        vendor: As the system names it.
        flags: Instruction sets that the processor has, all of them.
        float32, bfloat16: Implementation for at least `MIN_ROWS` rows.
        few_rows: Implementation for at most `native.MAX_FEW_ROWS` rows of float32.
        source: Results that say so.
    """

    vendor: str
    flags: tuple[str, ...]
    float32: Name
    bfloat16: Name
    few_rows: Name
    source: str

    def describes(self, silicon: Silicon) -> bool:
        """Return whether `silicon` is of this kind."""
        return self.vendor == silicon.vendor and set(self.flags) <= set(silicon.flags)


# The first that describes the silicon holds. On a Xeon with AMX a bfloat16 product of the native kernel took 8 to 15
# times as long as torch's, and one by oneDNN with a prepacked weight 0.5 to 0.9 times as long.
MEASURED = (
    MeasuredProducts("GenuineIntel", ("amx_bf16",), "torch", "onednn", "torch", "results/products"),
    MeasuredProducts("AuthenticAMD", ("avx512f", "avx512_bf16"), "native", "native", "native", "results/vim_latency"),
    MeasuredProducts("AuthenticAMD", ("avx512f",), "native", "torch", "native", "results/vim_latency"),
)


class ProductDecision(NamedTuple):
    """Implementation of a kind of product, and the reason."""

    name: Name
    linear: Linear
    reason: str


_decided: dict[tuple[torch.dtype, bool], ProductDecision] = {}


def linear(x: Tensor, weight: PrepackedWeight, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T + bias; differentiable, and then torch's own.

    Shape:
        x (..., in), weight (out, in), bias (out,) -> (..., out).
    """
    return plan_linear(x, weight)(x, weight, bias) if is_plain(x, bias) else by_torch.linear(x, weight, bias)


def plan_linear(x: Tensor, *weights: PrepackedWeight) -> Linear:
    """Return the implementation of products of inputs like x (..., in), which is plain, with each of the weights."""
    if is_traced():
        return by_torch.linear
    few = has_few_rows(x)
    every = [each.weight for each in weights]
    fits = all(weight.dtype == x.dtype and weight.numel() for weight in every)
    if not x.numel() or not fits or x.dtype not in DTYPES or not is_plain(x, *every) or implementation() != "native":
        return by_torch.linear
    decision = decide(x.dtype, few)
    between = few and x.numel() > native.MAX_FEW_ROWS * x.shape[-1]
    return by_torch.linear if between and decision.name == "native" else decision.linear


def has_few_rows(x: Tensor) -> bool:
    """Return whether x (..., in) has so few rows that no implementation reads a prepacked form."""
    return x.numel() == 0 or x.numel() < MIN_ROWS * x.shape[-1]


def decide(dtype: torch.dtype, few: bool) -> ProductDecision:
    """Return the implementation of products of this dtype, of few rows or of many, on the CPU.

    Raises:
        ConfigError: SCANLAB_LINEAR has an illegal value.
    """
    decision = _decided.get((dtype, few))
    if decision is None:
        decision = _decided[dtype, few] = _decide(dtype, few)
    return decision


def _decide(dtype: torch.dtype, few: bool) -> ProductDecision:
    name, reason = _named() or _measured(dtype, few)
    refusal = _refusal(name, dtype, few)
    if refusal is not None:
        name, reason = "torch", f"{reason}; {refusal}"
    return ProductDecision(name, _function(name, few), reason)


def _named() -> tuple[Name, str] | None:
    asked = settings.LINEAR.get()
    if asked is None:
        return None
    if asked not in NAMES:
        raise ConfigError(f"{settings.LINEAR.name}={asked!r}: must be one of {', '.join(NAMES)}; unset it to choose.")
    return asked, f"{settings.LINEAR.name}={asked}"  # type: ignore[return-value]  # it is one of NAMES


def _measured(dtype: torch.dtype, few: bool) -> tuple[Name, str]:
    measured = silicon_defaults()
    if measured is None:
        return "torch", "no other implementation was measured on this kind of silicon"
    name = measured.few_rows if few and dtype == torch.float32 else getattr(measured, str(dtype).rpartition(".")[2])
    return name, f"fastest on {measured.vendor} with {', '.join(measured.flags)} ({measured.source})"


@functools.cache
def silicon_defaults() -> MeasuredProducts | None:
    """Return the measured defaults for the silicon of this machine, or None."""
    silicon = this_machine().silicon
    return next((each for each in MEASURED if each.describes(silicon)), None)


def _refusal(name: Name, dtype: torch.dtype, few: bool) -> str | None:
    """Return why the implementation cannot multiply these, or None."""
    if name == "native":
        if few and dtype != torch.float32:
            return "native has no product of few rows in bfloat16"
        return None if native.multiplies(dtype) else f"native has no {dtype} on this instruction set"
    if name == "onednn":
        return onednn.unavailable()
    return None


def _function(name: Name, few: bool) -> Linear:
    if name == "native":
        return native.few_rows if few else native.linear
    return onednn.linear if name == "onednn" else by_torch.linear


def explain() -> str:
    """Return a line for each kind of product served in this process: the implementation, and why."""
    return "\n".join(
        f"products of {'few' if few else 'many'} rows in {str(dtype).rpartition('.')[2]}:"
        f" {decision.name} ({decision.reason})"
        for (dtype, few), decision in dict(_decided).items()
    )


def clear() -> None:
    """Drop the decisions, so that the environment is read again."""
    _decided.clear()
