"""The op `ssd`: its float64 reference, its hard problems, and the least that it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch

from scanlab.contract.cpu import pinned
from scanlab.contract.op import Inputs, Op, Work
from scanlab.contract.space import Config
from scanlab_kernels.ssd import reference
from scanlab_kernels.ssd.problem import SsdFn, SsdProblem, make_inputs

PLAIN = SsdProblem(batch=2, length=37, heads=4, head_dim=6, state=5)
# Options of the contract, one corner each, with and without gradients.
OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"dtype": "float64"},
    {"dtype": "bfloat16"},
    {"dtype": "float16"},
    {"groups": 2},
    {"groups": 4},
    {"skip": "none"},
    {"skip": "channel"},
    {"has_z": True},
    {"has_dt_bias": False},
    {"dt_softplus": False},
    {"dt_limit": "0.05:0.2"},
    {"has_initial_state": True},
    {"has_seq_idx": True},
    {"has_seq_idx": True, "has_initial_state": True, "groups": 2, "has_z": True},
    {"skip": "none", "has_dt_bias": False, "dt_softplus": False, "dt_limit": "0.1:inf", "dtype": "bfloat16"},
)
# (length, heads, head_dim, state): the smallest; one step; one state and one channel; past several chunks, at odd and
# at even sizes; a whole chunk of whole vectors; the widest head.
SIZES = (
    (1, 1, 1, 1),
    (1, 3, 5, 7),
    (301, 2, 1, 1),
    (275, 2, 33, 17),
    (130, 3, 16, 48),
    (128, 2, 64, 128),
    (67, 1, 130, 9),
)
# Sizes that no chunk or vector divides; with gradients, because an output can be right and its gradient wrong.
PROBES = (
    SsdProblem(batch=2, length=149, heads=6, head_dim=19, state=21, groups=2, has_seq_idx=True),
    SsdProblem(batch=1, length=67, heads=4, head_dim=24, state=16, has_initial_state=True, has_z=True, gradients=True),
)


def output_dtypes(inputs: Inputs) -> Mapping[str, torch.dtype]:
    """Return the dtypes of `SsdOutput` for these inputs: those of x and of A."""
    return {"out": inputs[0].x.dtype, "final_state": inputs[0].A.dtype}


def work(problem: SsdProblem) -> Work:
    """Return the least that one forward pass must do: h += drive B and y += h C for each update of a state.

    The decay costs a product of each state in the recurrence, and next to nothing in the matrix form.
    """
    exponentials = problem.batch * problem.length * problem.heads
    return Work(2 * problem.state_updates, exponentials, problem.min_bytes)


def float64_reference(problem: SsdProblem) -> SsdFn:
    """Return the recurrence, step by step, on one thread."""
    return pinned(partial(reference.ssd, problem=problem), 1)


def corners_of(config: Config) -> tuple[SsdProblem, ...]:
    """Return problems that are longer than the largest block that `config` names."""
    largest = max((value for value in config.values() if isinstance(value, int)), default=0)
    if largest < 64:
        return ()
    longer = PLAIN.replace(batch=1, length=largest + 1, heads=2, head_dim=3, has_seq_idx=True)
    return longer, longer.replace(length=2 * largest, gradients=True)


def _corners() -> Iterator[SsdProblem]:
    for gradients in (False, True):
        asked = PLAIN.replace(gradients=gradients)
        yield from (asked.replace(**options) for options in OPTIONS)
        for length, heads, head_dim, state in SIZES:
            yield asked.replace(batch=1, length=length, heads=heads, head_dim=head_dim, state=state)
    # Faults that show only if an option meets a length beyond a chunk.
    longer = PLAIN.replace(batch=1, length=131, heads=4, head_dim=17, state=16)
    yield from (longer.replace(**options) for options in OPTIONS)


op = Op(
    name="ssd",
    summary="state-space duality, the scan of Mamba-2",
    problem=SsdProblem,
    make_inputs=make_inputs,
    reference=float64_reference,
    output_dtypes=output_dtypes,
    work=work,
    corners=tuple(_corners()),
    probes=PROBES,
    corners_of=corners_of,
    timed_outputs=("out",),
    fallbacks=("ssd_native", "ssd_chunked", "ssd_reference"),
)
