"""Scan of a feature map in four directions, one step at a time in PyTorch.

The map is laid out as a sequence for each direction, and the outputs are put back, which VMamba calls cross-scan and
cross-merge. In float64 this is the reference that every other backend is verified against.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.backend import Backend, OpCapabilities, files_of
from scanlab.contract.base import DTYPES
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.space import Config, Space
from scanlab_kernels.cross_scan_2d import problem as problems
from scanlab_kernels.cross_scan_2d.problem import (
    DIRECTIONS,
    CrossScanFn,
    CrossScanInputs,
    CrossScanOutput,
    CrossScanProblem,
    full_delta,
)


def scatter(values: Tensor, direction: int) -> Tensor:
    """Return a map (..., height, width) as a sequence (..., length) in the order of a direction."""
    sequence = (values.mT if direction % 2 else values).flatten(-2)
    return sequence.flip(-1) if direction >= 2 else sequence


def gather(sequence: Tensor, direction: int, height: int, width: int) -> Tensor:
    """Return the map (..., height, width) of a sequence in the order of a direction."""
    ordered = sequence.flip(-1) if direction >= 2 else sequence
    grid: Tensor = ordered.unflatten(-1, (width, height) if direction % 2 else (height, width))
    return grid.mT if direction % 2 else grid


def _sequences(maps: Tensor) -> Tensor:
    """Return maps (batch, 4, channels, height, width) as sequences (batch, 4, channels, length), each in its order."""
    return torch.stack([scatter(maps[:, k], k) for k in range(DIRECTIONS)], dim=1)


def cross_scan_2d(inputs: CrossScanInputs, problem: CrossScanProblem) -> CrossScanOutput:
    """Return the output, for example of u (1, 192, 56, 56) with 16 states."""
    compute = inputs.A.dtype
    delta = full_delta(inputs._replace(delta=inputs.delta.to(compute)))
    u, B, C = (each.to(compute) for each in (inputs.u, inputs.B, inputs.C))
    if inputs.delta_bias is not None:
        delta = delta + inputs.delta_bias[..., None, None]
    if problem.delta_softplus:
        delta = F.softplus(delta)
    u_, delta, B, C = (_sequences(each) for each in (u[:, None].expand(-1, DIRECTIONS, -1, -1, -1), delta, B, C))
    h, y = u.new_zeros(problem.batch, *inputs.A.shape), []
    for t in range(problem.height * problem.width):
        decay = torch.exp(delta[..., t, None] * inputs.A)  # (1, 4, 192, 16)
        h = decay * h + (delta[..., t] * u_[..., t])[..., None] * B[:, :, None, :, t]
        y.append((h * C[:, :, None, :, t]).sum(-1))
    by_direction = torch.stack(y, -1).unbind(1)
    out = torch.zeros_like(u) if inputs.D is None else inputs.D.sum(0)[:, None, None] * u
    for k, each in enumerate(by_direction):
        out = out + gather(each, k, problem.height, problem.width)
    return CrossScanOutput(out.to(inputs.u.dtype))


def make(problem: CrossScanProblem, config: Config) -> CrossScanFn:
    """Return the loop on config["threads"] threads."""
    return pinned(lambda inputs: cross_scan_2d(inputs, problem), int(config["threads"]))


backend = Backend(
    name="cross_scan_2d_torch",
    summary="four sequences out of the map, one step at a time in Python",
    rank=0,
    sources=(Path(__file__), *files_of(problems)),
    space=Space((threads_tunable(),)),
    capabilities=OpCapabilities(devices=("cpu", "cuda"), dtypes=tuple(DTYPES), gradients=True),
    make=make,
    op="cross_scan_2d",
)
