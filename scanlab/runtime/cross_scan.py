"""Scan of a feature map in four directions (VMamba) by the machine's choice of backend."""

from __future__ import annotations

import torch

from scanlab.contract.problem import ScanInputs, ScanOutput
from scanlab.runtime import dispatch, traced
from scanlab.runtime.empty_scan import cross_scan_empty
from scanlab.runtime.promotion import promoted
from scanlab.runtime.traced import is_traced
from scanlab_kernels.cross_scan_2d.composed import by_lines
from scanlab_kernels.cross_scan_2d.problem import CrossScanInputs, CrossScanProblem

VARYING = ("u", "delta", "B", "C")


def cross_scan_2d(inputs: CrossScanInputs, *, delta_softplus: bool = True, backend: str | None = None) -> torch.Tensor:
    """Return the scan of a feature map in four directions; shapes in `scanlab_kernels.cross_scan_2d.problem`.

    Mixtures of dtypes are promoted exactly: u, delta, B and C to the widest of theirs, all others to the float32 or
    float64 that goes with it. Differentiable in every tensor. A graph that torch builds of the call holds the scans of
    rows and of columns, each served by the machine's choice where the graph runs.

    Args:
        inputs: The tensors.
        delta_softplus: Apply softplus to delta + delta_bias.
        backend: A backend ("cross_scan_2d_native:exp=fast") instead of the machine's choice.

    Returns:
        (batch, dim, height, width) in the dtype of u.

    Raises:
        ProblemError: The tensors do not fit together.
        ConfigError: The configuration in `backend` is not legal.
        UnknownBackendError: There is no such backend.
        UnavailableError: The backend cannot run here, or none serves the problem.
        RejectedError: The backend does not solve this problem.
    """
    asked = promoted(inputs, VARYING)
    if backend is None and (is_traced() or asked.u.is_meta):
        return _in_graph(asked, delta_softplus).to(inputs.u.dtype)
    if not asked.u.numel():
        return cross_scan_empty(asked).to(inputs.u.dtype)
    gradients = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in asked)
    problem = CrossScanProblem.of(asked, delta_softplus=delta_softplus, gradients=gradients)
    out: torch.Tensor = dispatch.dispatcher(backend).run(problem, asked).out
    return out.to(inputs.u.dtype)


def _in_graph(inputs: CrossScanInputs, delta_softplus: bool) -> torch.Tensor:
    def scan(*directions: ScanInputs) -> ScanOutput:
        return traced.scan(directions, delta_softplus, "bidirectional")

    return by_lines(scan, inputs)
