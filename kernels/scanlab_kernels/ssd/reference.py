"""Recurrence of Mamba-2, one step at a time.

In float64 this is the reference that every other backend of `ssd` is verified against. One state of (batch, heads,
head_dim, state) exists at a time; for gradients, one for each step. Source: Dao and Gu 2024, eq. 1 and 2, with A_t a
scalar times the identity (definition 5.1), discretised as in Mamba.
"""

from __future__ import annotations

from pathlib import Path

import torch

from scanlab.contract.backend import Backend, OpCapabilities, files_of
from scanlab.contract.base import DTYPES
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.space import Config, Space
from scanlab_kernels.ssd import operands as recurrence
from scanlab_kernels.ssd.problem import SsdFn, SsdInputs, SsdOutput, SsdProblem

WHOLE_CONTRACT = OpCapabilities(devices=("cpu", "cuda"), dtypes=tuple(DTYPES), gradients=True)


def ssd(inputs: SsdInputs, problem: SsdProblem) -> SsdOutput:
    """Return the output and the final state, for example of x (1, 512, 64, 64) with 128 states."""
    drive, log_decay, B, C, h = recurrence.operands(inputs, problem, None)
    decay = torch.exp(log_decay)  # (1, 512, 1, 64); h (1, 1, 128, 64, 64)
    is_new = recurrence.new_sequence(inputs)
    y = []
    for t, (a_t, drive_t, B_t, C_t) in enumerate(zip(*(each.unbind(1) for each in (decay, drive, B, C)), strict=True)):
        if is_new is not None:  # no product with 0, which keeps NaN
            h = h.masked_fill(is_new[:, t, None, None, None, None], 0.0)
        h = a_t[:, :, None, :, None] * h + drive_t[:, :, None] * B_t[..., None, None]  # eq. 1a
        y.append((h * C_t[..., None, None]).sum(2))  # eq. 1b
    return recurrence.epilogue(torch.stack(y, dim=1), h, inputs)


def make(problem: SsdProblem, config: Config) -> SsdFn:
    """Return the recurrence on config["threads"] threads."""
    return pinned(lambda inputs: ssd(inputs, problem), int(config["threads"]))


backend = Backend(
    name="ssd_reference",
    summary="the recurrence, one step at a time in Python",
    rank=0,
    sources=(Path(__file__), *files_of(recurrence)),
    space=Space((threads_tunable(),)),
    capabilities=WHOLE_CONTRACT,
    make=make,
    op="ssd",
)
