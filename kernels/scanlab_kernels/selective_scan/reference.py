"""The reference loop: every decay and every drive up front, then one step of Python for each time step.

The algorithm of the official reference (state-spaces/mamba@e9594ce, selective_scan_interface.py,
selective_scan_ref), which is what people without CUDA run today. It keeps (batch, dim, length, state)
tensors. In float64 it is the oracle that every other backend is held against.
"""

from __future__ import annotations

from pathlib import Path

import torch

from scanlab.contract.backend import WHOLE_CONTRACT, Backend, ScanFn
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config, Space
from scanlab_kernels.selective_scan import _bidirectional as directions
from scanlab_kernels.selective_scan import _discretize as pointwise


def scan(inputs: ScanInputs, problem: ScanProblem) -> ScanOutput:
    """The forward scan of one direction."""
    u, delta, A, B, C, h = pointwise.operands(inputs, problem)
    decay = torch.exp(torch.einsum("bgcl,gcn->bgcln", delta, A))
    drive = (delta * u)[..., None] * B.mT
    y = []
    for t in range(problem.length):
        h = decay[..., t, :] * h + drive[..., t, :]
        y.append(torch.sum(h * C[..., t], dim=-1))
    return pointwise.finish(torch.stack(y, dim=-1), h, inputs)


def make(problem: ScanProblem, config: Config) -> ScanFn:
    """The reference scan, held to config["threads"]."""
    return pinned(directions.directed(lambda inputs: scan(inputs, problem), problem), int(config["threads"]))


backend = Backend(
    name="reference",
    summary="the official loop in Python: one step for each time step",
    rank=0,
    sources=tuple(map(Path, (__file__, pointwise.__file__, directions.__file__))),
    space=Space((threads_tunable(),)),
    capabilities=WHOLE_CONTRACT,
    make=make,
)
