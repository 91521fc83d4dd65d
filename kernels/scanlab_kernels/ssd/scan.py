"""Mamba-2 as the selective scan of Mamba-1, in which every channel has rates and a step size of its own.

The heads' rates, step sizes and skips are repeated for their channels. The recurrence is the same, so this is right,
and it shows the gain of the matrix form: nothing here is a product of matrices, and each state of each channel costs an
exponential. A new sequence is a decay of zero, which no rate and step size have.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from scanlab.contract.backend import Backend, OpCapabilities, files_of
from scanlab.contract.base import DTYPES, Problem
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config, Space
from scanlab_kernels.selective_scan.native import backend as native
from scanlab_kernels.ssd import operands as recurrence
from scanlab_kernels.ssd.problem import Limits, SsdFn, SsdInputs, SsdOutput, SsdProblem

# Tunables of the scan that are legal for every problem.
TUNABLES = ("threads", "time_block", "channel_tile", "time_chunks")


@dataclass(frozen=True)
class ScanCapabilities(OpCapabilities):
    """The problems that the selective scan can solve."""

    def rejects(self, problem: Problem) -> str | None:
        """Return why the scan cannot solve `problem`, or None."""
        reason = super().rejects(problem)
        if reason is not None:
            return reason
        assert isinstance(problem, SsdProblem)
        return "it keeps no sequences apart" if problem.has_seq_idx else native.backend.rejects(scan_problem(problem))


def scan_problem(problem: SsdProblem) -> ScanProblem:
    """Return the scan of the channels of all heads, in float32 or wider."""
    return ScanProblem(
        batch=problem.batch,
        dim=problem.heads * problem.head_dim,
        length=problem.length,
        state=problem.state,
        groups=problem.groups,
        dtype="float64" if problem.dtype == "float64" else "float32",
        gradients=problem.gradients,
        has_D=problem.skip != "none",
        has_z=problem.has_z,
        has_delta_bias=False,
        delta_softplus=False,
        has_initial_state=problem.has_initial_state,
        layout="dim_last",
    )


def scan_inputs(inputs: SsdInputs, dt_softplus: bool, dt_limit: Limits) -> ScanInputs:
    """Return the inputs of the scan of the channels of all heads, after softplus and limits, in the dtype of A."""
    compute, state = inputs.A.dtype, inputs.B.shape[-1]
    head_dim = inputs.x.shape[-1]

    def by_channel(values: Tensor) -> Tensor:
        """Return (batch, length, heads, head_dim) as (batch, dim, length)."""
        return values.to(compute).flatten(2).mT

    def repeated(values: Tensor) -> Tensor:
        """Return (..., heads) as (..., dim)."""
        return values.repeat_interleave(head_dim, dim=-1)

    D = inputs.D
    if D is not None:
        D = D.flatten() if D.dim() == 2 else repeated(D)
    return ScanInputs(
        u=by_channel(inputs.x),
        delta=repeated(recurrence.discretize_dt(inputs, dt_softplus, dt_limit)).mT,
        A=repeated(inputs.A)[:, None].expand(-1, state),
        B=inputs.B.to(compute).movedim(1, -1),
        C=inputs.C.to(compute).movedim(1, -1),
        D=D,
        z=None if inputs.z is None else by_channel(inputs.z),
        initial_state=None if inputs.initial_state is None else inputs.initial_state.flatten(1, 2),
    )


def from_scan(output: ScanOutput, inputs: SsdInputs) -> SsdOutput:
    """Return the output of `inputs` from that of the scan of `scan_inputs`."""
    heads = inputs.x.shape[2:]
    return SsdOutput(output.out.mT.unflatten(2, heads).to(inputs.x.dtype), output.last_state.unflatten(1, heads))


def make(problem: SsdProblem, config: Config) -> SsdFn:
    """Return the native selective scan under `config`, on the channels of all heads."""
    scan = native.backend.build(scan_problem(problem), config)
    return lambda inputs: from_scan(scan(scan_inputs(inputs, problem.dt_softplus, problem.limits)), inputs)


backend = Backend(
    name="ssd_scan",
    summary="the native selective scan, with the rates and step sizes of each head repeated for its channels",
    rank=2,
    sources=(Path(__file__), *files_of(recurrence), *native.backend.sources),
    space=Space(tuple(each for each in native.backend.space.tunables if each.name in TUNABLES)),
    capabilities=ScanCapabilities(dtypes=tuple(DTYPES), gradients=True),
    make=make,
    unavailable=native.backend.unavailable,
    op="ssd",
)
