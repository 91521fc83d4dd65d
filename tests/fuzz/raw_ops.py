"""Calls of the compiled ops as torch.ops has them, past every check that the functions make in Python.

A right call is recorded from a call of a function, and then spoiled. Its values are not judged: it must end without a
crash or with an error that says what is wrong, and leave memory that it may not write as it was. What it reads is for
AddressSanitizer to judge.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from fuzz import convolutions, fronts, norms, other_scans, scans, steps
from fuzz.case import Arguments, Case, Results
from fuzz.draws import Draw

FUNCTIONS = (
    scans.selective_scan,
    scans.directed_scan,
    other_scans.ssd,
    other_scans.cross_scan,
    convolutions.convolution,
    convolutions.bidirectional_convolution,
    convolutions.update,
    norms.add_norm,
    steps.state_update,
    steps.mixer_step,
    fronts.product,
    fronts.front,
)
NUMBERS = (-1, 0, 1, 2, 3, 7, 16, 17, 100, 100_000, 2**31 - 1, 2**31, 2**32 + 1, -(2**31), 2**62)


class Recorder(TorchDispatchMode):
    """Calls of scanlab's compiled ops within the block, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[OpOverload, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the call, and make it."""
        if func.namespace.startswith("scanlab") and any(isinstance(each, Tensor) for each in args):
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def raw_op(draw: Draw, *, edge: bool) -> Case:
    """Draw a call of a compiled op: a right one, or with `edge` one with numbers that it does not know."""
    while True:
        case = draw.pick(FUNCTIONS)(draw, edge=False)
        with Recorder() as recorder, torch.inference_mode(False), torch.set_grad_enabled(bool(case.differentiated)):
            results = case.call(_leaves(case))
            differentiable = [each for each in results.values() if each.requires_grad]
            if differentiable:
                torch.autograd.backward(differentiable, [torch.ones_like(each) for each in differentiable])
        if recorder.calls:
            break
    op, values = draw.pick(recorder.calls)
    names = [argument.name for argument in op._schema.arguments]
    arguments: Arguments = dict(zip(names, map(_detached, values), strict=False))
    if edge:
        for name, value in arguments.items():
            if type(value) is int and draw.chance(0.5):
                arguments[name] = draw.pick(NUMBERS)

    def call(given: Arguments) -> Results:
        found = op(*given.values())
        found = found if isinstance(found, tuple | list) else (found,)
        return {str(n): each for n, each in enumerate(found) if isinstance(each, Tensor)}

    written = tuple(a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    return Case(f"{op}", arguments, call, lambda given: {}, lambda given: {}, states=written, may_refuse=edge)


def _leaves(case: Case) -> Arguments:
    return case.arguments | {name: case.arguments[name].detach().requires_grad_() for name in case.differentiated}


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
