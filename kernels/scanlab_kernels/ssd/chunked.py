"""Matrix form of Mamba-2 within chunks, the state carried between them.

Unrolling h[t] = a[t] h[t-1] + drive[t] B[t]^T over the steps 1 ... Q of a chunk, with the decay between two times

    L[t, s] = a[s+1] a[s+2] ... a[t],          L[t, t] = 1,

gives every output and the last state as products of matrices:

    y[t] = sum over s <= t of (C[t] . B[s]) L[t, s] drive[s]  +  L[t, 0] C[t] h[0]
    h[Q] = sum over s of L[Q, s] drive[s] B[s]^T              +  L[Q, 0] h[0]

All heads of a group share C[t] . B[s] and, because h is laid out as (state, heads x head_dim), one product for C h[0]
and one for the new state. Source: Dao and Gu 2024, theorem 6.1 and listing 1 (which forms all chunks at once).

Nothing here divides, and no large sums are subtracted: L adds the logarithms from s + 1 to t alone, so that a decay of
zero, where a new sequence begins, is a logarithm like any other.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.backend import Backend, files_of
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.space import Config, Space, Tunable
from scanlab_kernels import autograd
from scanlab_kernels.ssd import chunks
from scanlab_kernels.ssd import operands as recurrence
from scanlab_kernels.ssd.operands import Operands
from scanlab_kernels.ssd.problem import SsdFn, SsdProblem
from scanlab_kernels.ssd.reference import WHOLE_CONTRACT


def decays(log_decay: Tensor) -> Tensor:
    """Return L, (..., length + 1, length + 1), of log_decay (..., length); 1 above the diagonal."""
    steps = F.pad(log_decay, (1, 0))[..., None]
    return steps.expand(*steps.shape[:-1], steps.shape[-2]).tril(-1).cumsum(-2).exp()


def solve(operands: Operands) -> tuple[Tensor, Tensor]:
    """Return y and the last state of one chunk, for example 128 steps of 64 heads in one group."""
    drive, log_decay, B, C, h = operands  # (1, 128, 1, 64, 64), (1, 128, 1, 64), 2 x (1, 128, 1, 128)
    L = decays(log_decay.movedim(1, -1))  # (1, 1, 64, 129, 129)
    from_start = L[..., 1:, 0].movedim(-1, 1)[..., None]  # like drive
    to_end = L[..., -1, 1:].movedim(-1, 1)[..., None]
    B, C = B.transpose(1, 2), C.transpose(1, 2)  # (1, 1, 128, 128)

    scores = (C @ B.mT).tril()[:, :, None] * L[..., 1:, 1:]
    within = torch.einsum("bghts,bsghp->btghp", scores, drive)
    carried = torch.einsum("bgtn,bgnhp->btghp", C, h)
    added = torch.einsum("bgsn,bsghp->bgnhp", B, drive * to_end)
    return within + from_start * carried, L[:, :, None, :, -1, 0, None] * h + added


def make(problem: SsdProblem, config: Config) -> SsdFn:
    """Return the matrix form in chunks of config["chunk"] time steps, on config["threads"] threads."""
    chunk = int(config["chunk"])
    return pinned(lambda inputs: chunks.ssd(inputs, problem, chunk, solve), int(config["threads"]))


backend = Backend(
    name="ssd_chunked",
    summary="products of matrices within chunks, the state carried between them",
    rank=1,
    sources=(Path(__file__), *files_of(chunks, recurrence, autograd)),
    space=Space(
        (Tunable("chunk", (16, 32, 64, 128, 256), default=128, summary="time steps of a chunk"), threads_tunable())
    ),
    capabilities=WHOLE_CONTRACT,
    make=make,
    op="ssd",
)
