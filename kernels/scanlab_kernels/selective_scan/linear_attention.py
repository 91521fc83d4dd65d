"""The recurrence as com.microsoft.LinearAttention of ONNX Runtime >= 1.32: one node for a direction of a scan.

With update rule "gated" a head keeps a matrix h (key width x value width), and a step is
h = exp(decay) h + key value^T. A channel of the scan is a head with values of width 1: its key is B, its value delta u,
and its decay delta A; the query is C. Like `scan_operator`, it is a graph that is exported, not a backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scanlab.contract.problem import Direction, ScanInputs, ScanOutput
from scanlab.errors import UnavailableError
from scanlab_kernels.selective_scan.scan_operator import ScanByTime, by_direction


def scan(*inputs: ScanInputs, delta_softplus: bool = True, direction: Direction = "forward") -> ScanOutput:
    """Return the scan of these inputs, with a node for each direction.

    Raises:
        UnavailableError: A is complex or float64, or no graph for ONNX is being made.
    """
    if inputs[0].A.dtype != torch.float32:
        raise UnavailableError(f"A is {inputs[0].A.dtype}: LinearAttention of ONNX Runtime takes float32.")
    if not torch.onnx.is_in_onnx_export():
        raise UnavailableError("LinearAttention is an operator of ONNX Runtime: call torch.onnx.export(dynamo=True).")
    outs, states = zip(
        *(_attended(each) for each in by_direction(inputs, delta_softplus, direction)),
        strict=True,
    )
    last_state = torch.stack(states) if len(inputs) == 2 else states[0]
    return ScanOutput(sum(outs[1:], start=outs[0]).to(inputs[0].u.dtype), last_state)


def _attended(scanned: ScanByTime) -> tuple[Tensor, Tensor]:
    """Return the output (batch, dim, length) and the last state (batch, dim, state) of one direction."""
    length, batch, dim = scanned.drive.shape
    state = scanned.A.shape[1]
    is_shared = scanned.C.dim() == 3  # one query for all heads

    def by_head(values: Tensor) -> Tensor:
        """Return values of every step, with or without an axis of channels, as (batch, length, dim x state)."""
        values = values if values.dim() == 4 else values[:, :, None].expand(length, batch, dim, state)
        return values.transpose(0, 1).flatten(2)

    read, present = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::LinearAttention",
        (
            scanned.C.transpose(0, 1) if is_shared else by_head(scanned.C),
            by_head(scanned.B),
            scanned.drive.transpose(0, 1),
            scanned.start[..., None],
            by_head(scanned.delta[..., None] * scanned.A),
        ),
        {"q_num_heads": 1 if is_shared else dim, "kv_num_heads": dim, "scale": 1.0, "update_rule": "gated"},
        dtypes=(torch.float32, torch.float32),
        shapes=((batch, length, dim), (batch, dim, state, 1)),
        version=1,
    )
    return scanned.finished(read.transpose(0, 1)), present.squeeze(-1)
