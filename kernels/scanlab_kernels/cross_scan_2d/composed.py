"""Rows and columns of a feature map by two bidirectional scans; differentiable.

Rows are sequences as they lie in memory, and their two directions share one call. Columns are copied once, and the sum
of their outputs is added in the order of rows.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from scanlab.contract.backend import Backend, OpCapabilities, ScanFn, files_of
from scanlab.contract.base import DTYPE_NAMES, DTYPES, weight_dtype
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.problem import ScanInputs, ScanProblem
from scanlab.contract.space import Config, Space
from scanlab_kernels.cross_scan_2d import problem as problems
from scanlab_kernels.cross_scan_2d.problem import (
    CrossScanFn,
    CrossScanInputs,
    CrossScanOutput,
    CrossScanProblem,
    full_delta,
)
from scanlab_kernels.selective_scan.native.backend import backend as scan_backend


def sequence(values: Tensor, columns: bool) -> Tensor:
    """Return a map (batch, channels, height, width) as (batch, channels, length), channels adjacent in memory."""
    positions = values.permute(0, 3, 2, 1) if columns else values.permute(0, 2, 3, 1)
    return positions.flatten(1, 2).contiguous().mT


def scan_inputs(inputs: CrossScanInputs, delta: Tensor, direction: int) -> ScanInputs:
    """Return the inputs of the scan of a direction, in the order of rows or of columns.

    Args:
        inputs: Inputs of all four directions.
        delta: (batch, 4, dim, height, width).
        direction: Index of the direction, 0 to 3.
    """
    columns = bool(direction % 2)
    u, delta, B, C = (
        sequence(each, columns)
        for each in (inputs.u, delta[:, direction], inputs.B[:, direction], inputs.C[:, direction])
    )
    D, delta_bias = (None if each is None else each[direction] for each in (inputs.D, inputs.delta_bias))
    return ScanInputs(u, delta, inputs.A[direction], B, C, D, None, delta_bias)


def by_lines(scan: ScanFn, inputs: CrossScanInputs) -> Tensor:
    """Return the sum of the scans along rows and along columns.

    Args:
        scan: Scans two sets of inputs, the second in reverse, and adds their outputs.
        inputs: Inputs of all four directions.
    """
    delta = full_delta(inputs)
    rows, columns = (scan(*(scan_inputs(inputs, delta, first + k) for k in (0, 2))).out for first in (0, 1))
    height, width = inputs.u.shape[2:]
    out: Tensor = rows.unflatten(-1, (height, width)) + columns.unflatten(-1, (width, height)).mT
    return out


def make(problem: CrossScanProblem, config: Config) -> CrossScanFn:
    """Return the two scans on config["threads"] threads."""
    dtype = DTYPES[problem.dtype]
    compute = weight_dtype(dtype) if problem.rank else dtype  # a projected delta is not rounded to 16 bits
    asked = ScanProblem(
        batch=problem.batch,
        dim=problem.dim,
        length=problem.height * problem.width,
        state=problem.state,
        dtype=DTYPE_NAMES[compute],
        gradients=problem.gradients,
        direction="bidirectional",
        has_D=problem.has_D,
        has_z=False,
        has_delta_bias=problem.has_delta_bias,
        delta_softplus=problem.delta_softplus,
        layout="dim_last" if problem.dim > 1 else "length_last",
    )
    scan = scan_backend.build(asked, {})

    def cross_scan_2d(inputs: CrossScanInputs) -> CrossScanOutput:
        u, delta, B, C = (each.to(compute) for each in (inputs.u, inputs.delta, inputs.B, inputs.C))
        return CrossScanOutput(by_lines(scan, inputs._replace(u=u, delta=delta, B=B, C=C)).to(dtype))

    return pinned(cross_scan_2d, int(config["threads"]))


backend = Backend(
    name="cross_scan_2d_composed",
    summary="rows and columns by two bidirectional scans in C++",
    rank=1,
    sources=(Path(__file__), *files_of(problems), *scan_backend.sources),
    space=Space((threads_tunable(),)),
    capabilities=OpCapabilities(dtypes=tuple(DTYPES), gradients=True),
    make=make,
    unavailable=scan_backend.unavailable,
    op="cross_scan_2d",
)
