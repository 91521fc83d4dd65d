"""Keep transformers' models right where transformers takes functions of `mamba_ssm` and `causal_conv1d`.

Since 5.16 a modeling file of transformers takes every function that it can import from these packages, whatever the
device. The PyTorch function that it would call otherwise differs from upstream's in two respects:

- The fused functions of PyTorch (`mamba_inner_fn`, `mamba2_split_conv1d_scan_combined`) decline, and the mixer computes
  step by step. It then masks the padding after the convolution, normalises the step size before its projection
  (FalconMamba) and calls the projections with their hooks and adapters. Upstream's fused functions do none of this, so
  that training and evaluation differ.
- The convolutions of PyTorch take every activation, those of upstream SiLU alone.

On the CPU, the PyTorch function serves where the two differ.

Source: huggingface/transformers, integrations/hub_kernels.py, use_kernel_func_from_hub_with_fallback, 5.16 to 5.23.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from scanlab_kernels.after_import import AfterImport

if TYPE_CHECKING:
    from torch import Tensor  # not imported: processes that never need torch install the drop-in too

FUSED = ("mamba_inner_fn", "mamba2_split_conv1d_scan_combined")
CONVOLUTIONS = ("causal_conv1d_fn", "causal_conv1d_update")
ACTIVATIONS = (None, "silu", "swish")

Function = Callable[..., Any]


def adapt(module: ModuleType) -> None:
    """Let the functions in `module` that replace upstream's fall back to transformers' own where those differ."""
    for name in (*FUSED, *CONVOLUTIONS):
        chosen: Any = vars(module).get(name)
        own: Function | None = getattr(chosen, "__wrapped__", None)
        if own is not None:
            setattr(
                module, name, _by_case(chosen, own, _has_other_activation(own) if name in CONVOLUTIONS else _always)
            )


def _by_case(chosen: Function, own: Function, differs: Callable[..., bool]) -> Function:
    """Return a function that calls `own` for tensors on the CPU where the two differ, and `chosen` otherwise."""

    @functools.wraps(own)
    def function(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (own if x.is_cpu and differs(*args, **kwargs) else chosen)(x, *args, **kwargs)

    return function


def _always(*args: Any, **kwargs: Any) -> bool:
    return True


def _has_other_activation(own: Function) -> Callable[..., bool]:
    """Return a function that says whether a call, without its first argument, asks for another activation than SiLU."""
    _, *names = inspect.signature(own).parameters
    index = names.index("activation")

    def differs(*args: Any, activation: str | None = None, **kwargs: Any) -> bool:
        return (args[index] if index < len(args) else activation) not in ACTIVATIONS

    return differs


finder = AfterImport(r"transformers\.models\.\w+\.modeling_\w+", adapt)
