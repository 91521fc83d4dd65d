"""Scan in two phases: all states in place, then all outputs in one batched contraction.

The loop over time contains only the recurrence, one multiply-add per step over contiguous memory. It still keeps
(length, batch, dim, state) tensors.
"""

from __future__ import annotations

from pathlib import Path

import torch

from scanlab.contract.backend import WHOLE_CONTRACT_ANYWHERE, Backend, ScanFn, files_of
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config, Space
from scanlab_kernels import autograd
from scanlab_kernels.selective_scan import bidirectional, discretize, recurrence
from scanlab_kernels.selective_scan.recurrence import Solver


def scan(inputs: ScanInputs, problem: ScanProblem, solve: Solver = recurrence.sequential) -> ScanOutput:
    """Return the forward scan of one direction, its recurrence solved by `solve`."""
    u, delta, A, B, C, h = discretize.operands(inputs, problem)
    u, delta = (values.movedim(-1, 0).contiguous() for values in (u, delta))
    decay = (delta[..., None] * A).exp_()
    drive = (delta * u)[..., None] * B.movedim(-1, 0)
    states = recurrence.solved(decay, drive, h, solve)
    y = torch.einsum("lbgcn,bgcnl->bgcl", states, C)
    return discretize.epilogue(y, states[-1].clone(), inputs)


def make(problem: ScanProblem, config: Config) -> ScanFn:
    """Return the two-phase scan on config["threads"] threads."""
    return pinned(bidirectional.directed(lambda inputs: scan(inputs, problem), problem), int(config["threads"]))


backend = Backend(
    name="two_phase",
    summary="all states in place, then one contraction for the outputs",
    rank=1,
    sources=(Path(__file__), *files_of(recurrence, autograd, discretize, bidirectional)),
    space=Space((threads_tunable(),)),
    capabilities=WHOLE_CONTRACT_ANYWHERE,
    make=make,
)
