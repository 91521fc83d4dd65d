"""Matrix form of `chunked`, its chunk compiled by torch: the operations between the products become a few loops in C++.

The code is that of whole chunks, so the last one is padded with steps that neither decay nor add. Gradients are those
of `chunked`, which computes each chunk again.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.backend import Backend, files_of
from scanlab.contract.base import DTYPES
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.space import Config, Space, Tunable
from scanlab_kernels import torch_compiler
from scanlab_kernels.ssd import chunked, chunks
from scanlab_kernels.ssd.operands import Operands
from scanlab_kernels.ssd.problem import SsdFn, SsdProblem
from scanlab_kernels.ssd.reference import WHOLE_CONTRACT
from scanlab_kernels.torch_compiler import Compiled, compile_function, unavailable


@dataclass(frozen=True)
class Body:
    """Parameters of the code of a chunk; problems with equal bodies share the code."""

    chunk: int
    batch: int
    groups: int
    heads: int  # of a group
    head_dim: int
    state: int
    dtype: torch.dtype
    threads: int

    def examples(self) -> Operands:
        """Return operands of one chunk."""
        time = (self.batch, self.chunk, self.groups)
        zeros = functools.partial(torch.zeros, dtype=self.dtype)
        return Operands(
            drive=zeros(*time, self.heads, self.head_dim),
            log_decay=zeros(*time, self.heads),
            B=zeros(*time, self.state),
            C=zeros(*time, self.state),
            h=zeros(self.batch, self.groups, self.state, self.heads, self.head_dim),
        )


def _solve(*operands: Tensor) -> tuple[Tensor, Tensor]:
    return chunked.solve(Operands(*operands))


@functools.cache
def kernel(body: Body) -> Compiled:
    """Return the compiled chunk; torch caches it on disk."""
    return compile_function(_solve, tuple(body.examples()), body.threads)


def make(problem: SsdProblem, config: Config) -> SsdFn:
    """Compile a chunk of config["chunk"] time steps, and return the op on config["threads"] threads."""
    body = Body(
        chunk=int(config["chunk"]),
        batch=problem.batch,
        groups=problem.groups,
        heads=problem.heads // problem.groups,
        head_dim=problem.head_dim,
        state=problem.state,
        dtype=DTYPES["float64" if problem.dtype == "float64" else "float32"],
        threads=int(config["threads"]),
    )
    compiled = kernel(body)

    def solve(operands: Operands) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            return chunked.solve(operands)
        length = operands.drive.shape[1]
        missing = body.chunk - length
        padded = (F.pad(each, (0, 0) * (each.dim() - 2) + (0, missing)).contiguous() for each in operands[:4])
        y, h = compiled(*padded, operands.h.contiguous())
        return y[:, :length], h

    return pinned(lambda inputs: chunks.ssd(inputs, problem, body.chunk, solve), body.threads)


backend = Backend(
    name="ssd_compiled",
    summary="products of matrices within chunks, and the operations between them compiled by torch into C++",
    rank=3,
    sources=(Path(__file__), *files_of(torch_compiler), *chunked.backend.sources),
    space=Space((Tunable("chunk", (32, 64, 128), default=64, summary="steps of the compiled body"), threads_tunable())),
    capabilities=replace(WHOLE_CONTRACT, devices=("cpu",)),
    make=make,
    unavailable=unavailable,
    op="ssd",
    compiles_each=True,
)
