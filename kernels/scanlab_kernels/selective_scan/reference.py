"""Loop over time in Python, after all decays and drives have been computed.

In float64, and 32 steps at a time (`op.py`), this is the reference that every other backend is verified against. It
keeps (batch, dim, length, state) tensors. Source: state-spaces/mamba@e9594ce, selective_scan_interface.py,
selective_scan_ref, which people without CUDA run today; arXiv 2312.00752, eq. 2 (recurrence), eq. 4 (discretisation)
and Algorithm 2.
"""

from __future__ import annotations

from pathlib import Path

import torch

from scanlab.contract.backend import WHOLE_CONTRACT_ANYWHERE, Backend, ScanFn, files_of
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config, Space
from scanlab_kernels.selective_scan import bidirectional, discretize


def scan(inputs: ScanInputs, problem: ScanProblem) -> ScanOutput:
    """Return the forward scan of one direction, for example of u (64, 384, 197) with 16 states."""
    u, delta, A, B, C, h = discretize.operands(inputs, problem)  # u, delta (64, 1, 384, 197), A (1, 384, 16)
    decay = torch.exp(torch.einsum("bgcl,gcn->bgcln", delta, A))  # eq. 4: (64, 1, 384, 197, 16)
    drive = (delta * u)[..., None] * B.mT  # eq. 4, B simplified to delta * B as in the official code
    y = []
    for t in range(problem.length):
        h = decay[..., t, :] * h + drive[..., t, :]  # eq. 2a
        y.append(torch.sum(h * C[..., t], dim=-1))  # eq. 2b
    return discretize.epilogue(torch.stack(y, dim=-1), h, inputs)


def make(problem: ScanProblem, config: Config) -> ScanFn:
    """Return the reference scan on config["threads"] threads."""
    return pinned(bidirectional.directed(lambda inputs: scan(inputs, problem), problem), int(config["threads"]))


backend = Backend(
    name="reference",
    summary="the official loop over time in Python",
    rank=0,
    sources=(Path(__file__), *files_of(discretize, bidirectional)),
    space=Space((threads_tunable(),)),
    capabilities=WHOLE_CONTRACT_ANYWHERE,
    make=make,
)
