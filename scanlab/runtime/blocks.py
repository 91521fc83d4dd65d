"""Decide whether a block of a model is run by the native op that runs whole blocks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scanlab.contract import registry
from scanlab.contract.cpu import FOLLOW_TORCH
from scanlab.contract.space import Config
from scanlab.runtime.dispatch import serving_now
from scanlab.runtime.dispatcher import Bound
from scanlab.runtime.front import bound_front
from scanlab.runtime.products import Rows, bound_linear
from scanlab_kernels.add_norm.op import AddNormInputs, AddNormProblem
from scanlab_kernels.linear.weights import PrepackedWeight
from scanlab_kernels.mamba_blocks.native import NormParts, Product
from scanlab_kernels.mamba_front.weights import FrontWeights

PRODUCTS: dict[str, Product] = {"linear_mkl": "mkl", "linear_native": "native"}


class NativeOps(NamedTuple):
    """Native choices for a mixer: the configuration of its scan, and the product of its output projection."""

    scan_config: Config
    product: Product


def native_ops(hidden: Tensor, front: FrontWeights, scan: Bound, out: PrepackedWeight) -> NativeOps | None:
    """Return the choices for a mixer of inputs like hidden (batch, length, model); None unless all are native.

    Those on threads of their own are not: the op of whole blocks runs every part on torch's.
    """
    rows = Rows(hidden.numel() // hidden.shape[-1], hidden.dtype)
    product = bound_linear(rows, out.weight)
    if product is None or scan.problem is None or scan.promotes or scan.decision.backend != "native":
        return None
    if not _is_native(bound_front(hidden, front), "mamba_front_native") or not _is_native(product, *PRODUCTS):
        return None
    config = registry.get("native").space.complete(scan.decision.config, scan.problem, "native")
    return NativeOps(config, PRODUCTS[product.decision.backend])


def is_norm_native(hidden: Tensor, norm: NormParts) -> bool:
    """Return whether the native op was decided for this norm of hidden, and of its sum with a residual."""
    wide = torch.promote_types(hidden.dtype, torch.float32) if norm.residual_in_fp32 else hidden.dtype
    return all(_is_native(_bound_norm(hidden, total, norm), "add_norm_native") for total in (None, hidden.to(wide)))


def _bound_norm(hidden: Tensor, residual: Tensor | None, norm: NormParts) -> Bound:
    inputs = AddNormInputs(hidden, residual, norm.weight, norm.bias, norm.eps)
    problem = AddNormProblem.of(inputs, kind=norm.kind, residual_in_fp32=norm.residual_in_fp32)
    return serving_now().bound_to(problem, lambda: problem)


def _is_native(bound: Bound | None, *backends: str) -> bool:
    """Return whether one of these backends was decided for, on torch's threads."""
    if bound is None or bound.decision.backend not in backends:
        return False
    return bound.decision.config.get("threads", FOLLOW_TORCH) == FOLLOW_TORCH
