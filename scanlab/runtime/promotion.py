"""Exact promotion of mixed dtypes to those that a problem asks for."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any, TypeVar

import torch
from torch import Tensor

from scanlab.contract.base import weight_dtype
from scanlab.contract.problem import ScanInputs
from scanlab.errors import ProblemError

Inputs = TypeVar("Inputs", bound=Any)

# Tensors of a scan that are complex where its states are.
COMPLEX = ("A", "B", "C", "initial_state")


def promoted(
    inputs: Inputs, varying: Collection[str], indices: Collection[str] = (), complex_too: Collection[str] = ()
) -> Inputs:
    """Return the tensors of `inputs`, a NamedTuple, in the dtypes that a problem asks for.

    Args:
        inputs: Tensors, None if absent.
        varying: Names of those that get the widest of their dtypes, integers counting as float32. All others get the
            float32 or float64 that goes with it.
        indices: Names of those that hold whole numbers, and become int32.
        complex_too: Names of those that stay complex where they are.

    Raises:
        ProblemError: Another tensor is complex, or an index is not whole.
    """
    given: dict[str, Tensor] = {name: each for name, each in inputs._asdict().items() if each is not None}
    for name, each in given.items():
        if (each.is_complex() and name not in complex_too) or (name in indices and each.is_floating_point()):
            raise ProblemError(f"{name} is {each.dtype}: must be {'whole' if name in indices else 'real'} numbers.")
    real = [given[name].dtype for name in varying if name in given and not given[name].is_complex()]
    widest = functools.reduce(torch.promote_types, real)
    dtype = widest if widest.is_floating_point else torch.float32

    def fit(name: str, tensor: Tensor) -> Tensor:
        to = torch.int32 if name in indices else dtype if name in varying else weight_dtype(dtype)
        return tensor.to(to.to_complex() if tensor.is_complex() else to)

    fitted: Inputs = inputs._replace(**{name: fit(name, each) for name, each in given.items()})
    return fitted


def promoted_scan(inputs: ScanInputs) -> ScanInputs:
    """Return the inputs of a selective scan in the dtypes that a ScanProblem asks for."""
    projections = (name for name in ("B", "C") if getattr(inputs, name).dim() > 2)
    return promoted(inputs, ("u", "delta", "z", *projections), complex_too=COMPLEX)
