"""Exact promotion of mixed dtypes to those that a problem asks for."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any, TypeVar

import torch
from torch import Tensor

from scanlab.contract.base import weight_dtype
from scanlab.errors import ProblemError

Inputs = TypeVar("Inputs", bound=Any)


def promoted(inputs: Inputs, varying: Collection[str], indices: Collection[str] = ()) -> Inputs:
    """Return the tensors of `inputs`, a NamedTuple, in the dtypes that a problem asks for.

    Args:
        inputs: Tensors, None where absent.
        varying: Names of those that get the widest of their dtypes. All others get the float32 or float64 that goes
            with it.
        indices: Names of those that hold whole numbers, and become int32.

    Raises:
        ProblemError: A tensor is complex, or an index is not whole.
    """
    given: dict[str, Tensor] = {name: each for name, each in inputs._asdict().items() if each is not None}
    for name, each in given.items():
        if each.is_complex() or (name in indices and each.is_floating_point()):
            raise ProblemError(f"{name} is {each.dtype}: must be {'whole' if name in indices else 'real'} numbers.")
    dtype = functools.reduce(torch.promote_types, (given[name].dtype for name in varying if name in given))
    weight = weight_dtype(dtype)

    def dtype_of(name: str) -> torch.dtype:
        return torch.int32 if name in indices else dtype if name in varying else weight

    promoted: Inputs = inputs._replace(**{name: each.to(dtype_of(name)) for name, each in given.items()})
    return promoted
