"""Check that inputs pose the problem that is named beside them: a backend could read beyond smaller tensors."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

from scanlab import settings
from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.op import Inputs, tensors_of
from scanlab.errors import ProblemError

# The type of each NamedTuple of inputs, and the shape, dtype and kind of device of each of its tensors.
Description = tuple[tuple[type, dict[str, tuple[torch.Size, torch.dtype, str]]], ...]


def expect_posed(problem: Problem, inputs: Inputs) -> None:
    """Raise ProblemError unless `inputs` pose `problem`.

    Where the type of the problem has a class method `of(*inputs, **options)`, that reads the problem from the tensors.
    Otherwise the tensors must have the shapes, dtypes and devices of those that the op draws.

    Raises:
        ProblemError: The inputs have other types, or pose another problem or none.
    """
    if not isinstance(problem, Problem):
        raise ProblemError(f"{problem!r} is no problem: give one, such as ScanProblem(batch=1, dim=384, length=197).")
    expected = _drawn(problem)
    wanted, given = [kind.__name__ for kind, _ in expected], [type(each).__name__ for each in inputs]
    if wanted != given:
        raise ProblemError(f"{problem.op} was given {_join(given)}: it takes {_join(wanted)}.")
    options = _options(problem)
    if options is None:
        _expect_alike(problem, expected, _describe(inputs))
        return
    kind: Any = type(problem)
    posed = kind.of(*inputs, **options)
    if posed != problem:
        raise ProblemError(f"the inputs pose {posed.key}, not {problem.key}: name the problem that they pose.")


@functools.lru_cache(settings.MAX_KEPT_SCANS)
def _options(problem: Problem) -> dict[str, Any] | None:
    """Return the options that the method `of` of a problem takes beside the inputs; None without such a method."""
    of = getattr(type(problem), "of", None)
    if of is None:
        return None
    parameters = inspect.signature(of).parameters.values()
    return {each.name: getattr(problem, each.name) for each in parameters if each.kind is each.KEYWORD_ONLY}


@functools.lru_cache(settings.MAX_KEPT_SCANS)
def _drawn(problem: Problem) -> Description:
    """Return a description of the inputs that the op draws for `problem`, which are made once."""
    return _describe(registry.op(problem.op).make_inputs(problem, 0))


def _describe(inputs: Inputs) -> Description:
    return tuple(
        (
            type(each),
            {name: (tensor.shape, tensor.dtype, tensor.device.type) for name, tensor in tensors_of(each).items()},
        )
        for each in inputs
    )


def _expect_alike(problem: Problem, expected: Description, given: Description) -> None:
    for (_, wanted), (_, found) in zip(expected, given, strict=True):
        for name in {**wanted, **found}:
            if wanted.get(name) != found.get(name):
                raise ProblemError(
                    f"{name} is {_spell(found.get(name))}: {problem.key} takes {_spell(wanted.get(name))}."
                )


def _spell(tensor: tuple[torch.Size, torch.dtype, str] | None) -> str:
    if tensor is None:
        return "none"
    shape, dtype, device = tensor
    return f"{str(dtype).removeprefix('torch.')} {tuple(shape)} on {device}"


def _join(names: list[str]) -> str:
    return ", ".join(names) or "nothing"
