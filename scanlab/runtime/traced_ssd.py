"""Mamba-2's scan as one torch op, for programs of which torch builds a graph; see `traced`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scanlab.errors import UnavailableError
from scanlab.runtime.traced import define, exports_to_onnx
from scanlab_kernels.selective_scan import scan_operator
from scanlab_kernels.ssd.problem import Limits, SsdInputs, SsdOutput
from scanlab_kernels.ssd.scan import from_scan, scan_inputs

TENSORS = len(SsdInputs._fields)
REQUIRED = ("x", "dt", "A", "B", "C")

Serve = Callable[[SsdInputs, bool, Limits], SsdOutput]


def ssd(inputs: SsdInputs, dt_softplus: bool, dt_limit: Limits) -> SsdOutput:
    """Return the scan of these tensors as a node of the graph: the op, or for ONNX torch's scan operator.

    Raises:
        UnavailableError: The graph is for ONNX, and ONNX cannot hold this scan.
    """
    if exports_to_onnx():
        if inputs.seq_idx is not None:
            raise UnavailableError("ONNX holds no scan with seq_idx: export the model with one sequence a row.")
        return from_scan(scan_operator.scan(scan_inputs(inputs, dt_softplus, dt_limit), delta_softplus=False), inputs)
    return SsdOutput(*torch.ops.scanlab_runtime.ssd(*inputs, dt_softplus, *map(float, dt_limit)))


def register(serve: Serve) -> None:
    """Define the op; once in a process.

    Args:
        serve: Computes a scan, differentiably, from inputs in the dtypes of a problem.
    """

    def run(*arguments: Any) -> SsdOutput:
        softplus, low, high = arguments[TENSORS:]
        return serve(SsdInputs(*arguments[:TENSORS]), softplus, (low, high))

    def shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
        x, A, B = arguments[0], arguments[2], arguments[3]
        return torch.empty_like(x), A.new_empty((x.shape[0], *x.shape[2:], B.shape[-1]))

    tensors = [f"Tensor{'' if name in REQUIRED else '?'} {name}" for name in SsdInputs._fields]
    define("ssd", tensors, "bool softplus, float lowest_dt, float highest_dt", run, shapes)
