"""The linear layer by oneDNN with a prepacked weight, as torch's compiler calls it: AMX where the CPU has it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from scanlab.contract.backend import Backend
from scanlab.contract.cpu import threads_tunable
from scanlab.contract.space import Space
from scanlab_kernels.linear.prepacked import LinearCapabilities, maker
from scanlab_kernels.linear.weights import PrepackedWeight, dense_bias


def unavailable() -> str | None:
    """Return why this torch cannot multiply with a weight that oneDNN has prepacked, or None."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this build of torch has no oneDNN product with a prepacked weight; install one that has oneDNN."
    return None


def linear(x: Tensor, weight: PrepackedWeight, bias: Tensor | None) -> Tensor:
    """Return x weight^T + bias."""
    packed = weight.form("onednn", pack)
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, dense_bias(bias, weight.weight), "none", [], "")
    return out


def pack(weight: Tensor) -> Tensor:
    """Return a weight (out, in) in the blocked layout of oneDNN's products, for any number of rows."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return packed


backend = Backend(
    name="linear_onednn",
    summary="oneDNN with a prepacked weight",
    rank=1,
    sources=(Path(__file__),),
    space=Space((threads_tunable(),)),
    capabilities=LinearCapabilities(dtypes=("float32", "bfloat16")),
    make=maker(linear),
    unavailable=unavailable,
    op="linear",
)
