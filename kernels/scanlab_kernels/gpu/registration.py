"""Registration of Triton kernels as torch ops."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scanlab_kernels.autograd import refusing

NO_SECOND_DERIVATIVES = (
    "the Triton ops of the Mamba block have no second derivatives; call inside scanlab.runtime.ops.in_torch()."
)


@functools.cache
def _library(namespace: str) -> torch.library.Library:
    return torch.library.Library(namespace, "FRAGMENT")


def define(
    schema: str,
    compute: Callable[..., Any],
    shapes: Callable[..., Any],
    *,
    keep: Callable[..., None] | None = None,
    gradients: Callable[..., Any] | None = None,
    refuses: str | None = None,
) -> None:
    """Register a torch op.

    Args:
        schema: Signature with namespace: "scanlab::name(Tensor x) -> Tensor".
        compute: Computes the op, on tensors of any device.
        shapes: Returns empty tensors like the outputs, for tracing.
        keep: Saves the tensors of the gradients in the context of autograd (`setup_context`).
        gradients: Returns the gradients of all arguments (`backward`); without it no graph is recorded.
        refuses: For an op that computes gradients: the message of the NotImplementedError that its own gradients raise.
    """
    if refuses is not None:
        keep, gradients = refusing(refuses)
    namespace, _, signature = schema.partition("::")
    name = signature.partition("(")[0]
    library = _library(namespace)
    library.define(signature)
    library.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{namespace}::{name}", shapes, lib=library)
    if gradients is None:
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")
    else:
        torch.library.register_autograd(f"{namespace}::{name}", gradients, setup_context=keep, lib=library)


def changed(state: Tensor) -> None:
    """Tell autograd that a kernel wrote to `state`."""
    if not state.is_inference():
        torch.autograd.graph.increment_version(state)
