"""Ops of a state-space model: the problem of each, its test inputs, its float64 reference and its minimal cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scanlab.contract.base import Problem
from scanlab.contract.space import Config

# The inputs of one call: NamedTuples of tensors, one for each direction of a scan, one alone for most other ops.
Inputs = tuple[Any, ...]

# Rounding errors that a correct implementation can reach, as a share of a tensor's largest value, by the dtype that the
# tensor is returned in: some 20 ulp of accumulated sums for float32 and float64; for half precision one rounding of
# each direction and one of their sum, because the arithmetic inside is float32.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}


@dataclass(frozen=True)
class Work:
    """Lower bounds on the work of any implementation for a problem.

    Args:
        multiply_adds: Fused multiply-adds of one lane each.
        exponentials: Exponentials.
        traffic_bytes: Bytes to read and to write, each tensor once.
        arithmetic: Name of the dtype that the multiply-adds take their operands in.
    """

    multiply_adds: float
    exponentials: float
    traffic_bytes: float
    arithmetic: str = "float32"


def no_corners(config: Config) -> tuple[Problem, ...]:
    """Return nothing: the default of an op whose implementations have no sizes of their own."""
    return ()


@dataclass(frozen=True)
class Op:
    """An op as a value; registered under the entry-point group `scanlab.ops` by its name.

    Args:
        name: One word or several joined by underscores, such as "selective_scan".
        summary: The computation, in a line.
        problem: The type of its problems, whose class attribute `op` is `name`.
        make_inputs: (problem, seed) -> inputs that make errors show; reproducible.
        reference: (problem in float64 on the CPU) -> a function of the inputs that returns a NamedTuple of tensors.
        output_dtypes: (inputs) -> the dtype of each output, by its name.
        work: (problem) -> lower bounds on the work of one forward pass.
        corners: The hard problems: the command line, the contract test and the tests all take them from here.
        probes: Corners that every configuration of a backend is verified on, not its defaults alone.
        corners_of: (configuration) -> further problems, beyond the blocks and tiles that the configuration names.
        tolerances: The largest error of a returned tensor, as a share of its largest value, by dtype.
        input_suffixes: Suffixes of the names of gradients, for the first, second, ... NamedTuple of inputs.
        timed_outputs: Names of the outputs that a timed training step differentiates; all of them where empty.
        fresh_inputs: (problem, inputs, seed) -> inputs like the given ones that need another answer; drawn by
            `make_inputs` where None.
        speedups_over: The backend that speed-ups refer to, with its tunables that are not default, such as
            "reference:threads=1"; the simplest backend that is installed where empty.
        fallbacks: Names of the backends that serve where nothing was measured, the preferred one first; the simplest
            first where empty.
        allowed_error: (problem) -> the largest error, where the problem and not the dtype says it.
    """

    name: str
    summary: str
    problem: type[Problem]
    make_inputs: Callable[[Any, int], Inputs]
    reference: Callable[[Any], Callable[..., Any]]
    output_dtypes: Callable[[Inputs], Mapping[str, torch.dtype]]
    work: Callable[[Any], Work]
    corners: tuple[Problem, ...]
    probes: tuple[Problem, ...]
    corners_of: Callable[[Config], tuple[Problem, ...]] = no_corners
    tolerances: Mapping[torch.dtype, float] = field(default_factory=TOLERANCES.copy, hash=False)
    input_suffixes: tuple[str, ...] = ("",)
    timed_outputs: tuple[str, ...] = ()
    fresh_inputs: Callable[[Any, Inputs, int], Inputs] | None = None
    speedups_over: str = ""
    fallbacks: tuple[str, ...] = ()
    allowed_error: Callable[[Any], float] | None = None

    def tolerance(self, problem: Problem, dtype: torch.dtype) -> float:
        """Return the largest error of a tensor that is returned in the real `dtype`."""
        return self.tolerances[dtype] if self.allowed_error is None else self.allowed_error(problem)


def tensors_of(inputs: Any) -> dict[str, Tensor]:
    """Return the tensors of a NamedTuple of inputs that are there, by name."""
    return {name: value for name, value in inputs._asdict().items() if isinstance(value, Tensor)}


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """Return a NamedTuple of inputs with `function` applied to each tensor."""
    return inputs._replace(**{name: function(tensor) for name, tensor in tensors_of(inputs).items()})


def with_gaps(tensor: Tensor) -> Tensor:
    """Return the same values with a stride of two elements, and between them NaN, or zeros among integers."""
    filler = math.nan if tensor.is_floating_point() or tensor.is_complex() else 0
    return torch.stack((tensor, torch.full_like(tensor, filler)), dim=-1)[..., 0]


def copy_with_strides(tensor: Tensor) -> Tensor:
    """Return a copy in other memory with the same strides, those of a view of a larger tensor too.

    `Tensor.clone` packs such a view, and an implementation would then read another layout.
    """
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(tensor.untyped_storage().clone(), tensor.storage_offset(), tensor.size(), tensor.stride())
