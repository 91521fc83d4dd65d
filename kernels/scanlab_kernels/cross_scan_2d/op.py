"""The op `cross_scan_2d`: its float64 reference, its hard problems, and the least that it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch

from scanlab.contract.op import Inputs, Op, Work
from scanlab.contract.space import Config
from scanlab_kernels.cross_scan_2d import torch as by_torch
from scanlab_kernels.cross_scan_2d.problem import DIRECTIONS, CrossScanFn, CrossScanProblem, make_inputs

# delta A, drive = (delta u) B, h = decay h + drive, and y += C h: one lane each, for each update of a state.
MULTIPLY_ADDS = 4

PLAIN = CrossScanProblem(batch=2, dim=6, height=5, width=7, state=3)
# Options of the contract, one corner each, with and without gradients.
OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"dtype": "float64"},
    {"dtype": "bfloat16"},
    {"dtype": "float16"},
    {"layout": "channel_first"},
    {"layout": "channel_first", "dtype": "bfloat16"},
    {"has_D": False},
    {"has_delta_bias": False},
    {"delta_softplus": False},
    {"has_D": False, "has_delta_bias": False, "delta_softplus": False},
    {"rank": 3},
    {"rank": 19, "dtype": "bfloat16", "width": 13},
    {"rank": 2, "dtype": "float64", "layout": "channel_first"},
    {"rank": 1, "has_delta_bias": False, "delta_softplus": False},
)
# (dim, height, width, state): the smallest; one row; one column; beyond a vector and a block of steps; many states.
SIZES = ((1, 1, 1, 1), (5, 1, 9, 2), (5, 9, 1, 2), (33, 3, 70, 1), (17, 66, 2, 5), (32, 4, 4, 17))
PROBES = (
    CrossScanProblem(batch=2, dim=37, height=11, width=13, state=1),
    CrossScanProblem(batch=1, dim=19, height=9, width=6, state=16, gradients=True),
    CrossScanProblem(batch=1, dim=40, height=7, width=20, state=1, rank=5),
)


def output_dtypes(inputs: Inputs) -> Mapping[str, torch.dtype]:
    """Return the dtype of the output for these inputs: that of u."""
    return {"out": inputs[0].u.dtype}


def work(problem: CrossScanProblem) -> Work:
    """Return the least that a forward pass must do: 4 multiply-adds and an exponential for each update of a state."""
    projection = problem.state_updates // problem.state * problem.rank
    return Work(MULTIPLY_ADDS * problem.state_updates + projection, problem.state_updates, problem.min_bytes)


def float64_reference(problem: CrossScanProblem) -> CrossScanFn:
    """Return the loop over the steps of every direction."""
    return partial(by_torch.cross_scan_2d, problem=problem)


def corners_of(config: Config) -> tuple[CrossScanProblem, ...]:
    """Return problems whose lines are longer than the block that `config` names."""
    block = config.get("time_block")
    if not isinstance(block, int):
        return ()
    return PLAIN.replace(batch=1, dim=3, height=2, width=block + 1), PLAIN.replace(batch=1, dim=3, height=block + 1)


def _corners() -> Iterator[CrossScanProblem]:
    for gradients in (False, True):
        asked = PLAIN.replace(gradients=gradients)
        yield from (asked.replace(**options) for options in OPTIONS)
        for dim, height, width, state in SIZES:
            yield asked.replace(batch=1, dim=dim, height=height, width=width, state=state)


op = Op(
    name="cross_scan_2d",
    summary=f"the scan of VMamba: a feature map in {DIRECTIONS} directions",
    problem=CrossScanProblem,
    make_inputs=make_inputs,
    reference=float64_reference,
    output_dtypes=output_dtypes,
    work=work,
    corners=tuple(_corners()),
    probes=PROBES,
    corners_of=corners_of,
    fallbacks=("cross_scan_2d_native", "cross_scan_2d_composed", "cross_scan_2d_torch"),
)
