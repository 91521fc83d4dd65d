"""A third-party op with two backends: the causal moving average of a signal.

Two entry points make scanlab know it (see pyproject.toml beside this file); `scanlab verify moving_pool` verifies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from scanlab.contract.backend import Backend, OpCapabilities
from scanlab.contract.base import DTYPES, Problem, expect_sizes
from scanlab.contract.op import Op, Work
from scanlab.contract.space import Space, Tunable


@dataclass(frozen=True, kw_only=True)
class AverageProblem(Problem):
    """The average of the last `width` of `length` values in each of `rows` rows."""

    op: ClassVar[str] = "moving_average"
    sizes: ClassVar[tuple[str, ...]] = ("rows", "length", "width")

    rows: int
    length: int
    width: int = 8
    dtype: str = "float32"
    device: str = "cpu"
    gradients: bool = False

    def __post_init__(self) -> None:
        expect_sizes(self)


class Inputs(NamedTuple):
    """x (rows, length)."""

    x: Tensor


class Outputs(NamedTuple):
    """out (rows, length), the dtype of x."""

    out: Tensor


def make_inputs(problem: AverageProblem, seed: int = 0) -> tuple[Inputs]:
    """Draw a signal with a large mean, where a running sum loses digits."""
    generator = torch.Generator().manual_seed(seed)
    x = 100 + torch.randn(problem.rows, problem.length, generator=generator, dtype=torch.float64)
    return (Inputs(x.to(problem.device, DTYPES[problem.dtype])),)


def windows(problem: AverageProblem, config: object = None):
    """Return the average over a view of all windows: the reference, and the simplest backend."""

    def average(inputs: Inputs) -> Outputs:
        padded = torch.nn.functional.pad(inputs.x, (problem.width - 1, 0))
        return Outputs(padded.unfold(-1, problem.width, 1).mean(-1))

    return average


def pooled(problem: AverageProblem, config: dict):
    """Return the average by torch's pooling, `rows` rows at a time."""

    def average(inputs: Inputs) -> Outputs:
        padded = torch.nn.functional.pad(inputs.x, (problem.width - 1, 0))
        pieces = padded[:, None].split(config["rows"])
        return Outputs(torch.cat([torch.avg_pool1d(each, problem.width, 1) for each in pieces])[:, 0])

    return average


CORNERS = (
    AverageProblem(rows=1, length=1, width=1),
    AverageProblem(rows=5, length=37, width=8, gradients=True),
    AverageProblem(rows=3, length=129, width=130),
)
op = Op(
    name="moving_average",
    summary="the average of the last values of a signal",
    problem=AverageProblem,
    make_inputs=make_inputs,
    reference=windows,
    output_dtypes=lambda inputs: {"out": inputs[0].x.dtype},
    work=lambda problem: Work(problem.rows * problem.length, 0, 8 * problem.rows * problem.length),
    corners=CORNERS,
    probes=CORNERS[1:],
)
CLAIMS = OpCapabilities(dtypes=("float32", "float64"), gradients=True)
SOURCES = (Path(__file__),)
moving_windows = Backend("moving_windows", "a view of all windows", 0, SOURCES, Space(), CLAIMS, windows, op=op.name)
tunable = Tunable("rows", (1, 4, 64), default=4, summary="rows at a time")
moving_pool = Backend("moving_pool", "torch's pooling", 1, SOURCES, Space((tunable,)), CLAIMS, pooled, op=op.name)
