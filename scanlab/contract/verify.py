"""Compare an implementation of an op with the op's float64 reference: outputs and gradients, tensor by tensor.

Sums cancel in a scan, so that an element-wise relative error means nothing. Every error here is the largest absolute
difference of a tensor over the largest absolute value of that tensor in the reference.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.op import Inputs, Op, map_tensors, tensors_of

# Memory that is filled with NaN before an implementation is called, for each output.
POISONED_BYTES = 8 << 20
# Most calls that a repeated verification makes; a data race shows in some calls only.
MAX_CALLS = 32


@dataclass(frozen=True)
class Verdict:
    """Agreement of an implementation with the reference, tensor by tensor.

    Attributes:
        passed: Whether every tensor is within its tolerance and no input was changed.
        errors: Largest error of each tensor, as a share of its largest value.
        tolerances: Largest error that is allowed, by the name of the tensor.
        reason: Why the implementation failed, or None.
    """

    passed: bool
    errors: Mapping[str, float]
    tolerances: Mapping[str, float]
    reason: str | None = None

    @property
    def worst(self) -> float:
        """The largest error of any tensor, as a share of that tensor's largest value."""
        return max(self.errors.values(), default=math.inf)

    def to_json(self) -> dict[str, Any]:
        """Return this verdict as JSON values."""
        return {
            "passed": self.passed,
            "errors": dict(self.errors),
            "tolerances": dict(self.tolerances),
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Verdict:
        """Return the verdict that `to_json` wrote."""
        return cls(**values)


@dataclass(frozen=True)
class ReferenceOutputs:
    """Outputs of the float64 reference for a problem and its inputs; computed once, compared with many implementations.

    Args:
        problem: The problem.
        inputs: The inputs, as implementations get them.
        tensors: Outputs, and gradients where the problem has them, in float64 on the CPU, by name.
    """

    problem: Problem
    inputs: Inputs
    tensors: Mapping[str, Tensor]


def reference_outputs(problem: Problem, inputs: Inputs) -> ReferenceOutputs:
    """Compute the reference of `problem`'s op in float64, and its gradients where the problem has them."""
    exact = problem.replace(dtype="float64", device="cpu")
    op = registry.op(problem.op)
    wide = tuple(map_tensors(_to_float64, each) for each in inputs)
    return ReferenceOutputs(problem, inputs, _observe(op, op.reference(exact), wide, problem.gradients))


def verify(function: Callable[..., Any], expected: ReferenceOutputs, repeats_s: float = 0.0) -> Verdict:
    """Compare `function`, built for `expected.problem`, with the reference.

    The verdict fails on an error above the tolerance of the returned dtype, a wrong shape or dtype, values that are
    not finite where those of the reference are, and on inputs that the function has changed. Exceptions of
    the function are raised.

    Args:
        function: Called with the inputs once, and again while repeats last.
        expected: The reference, for these inputs.
        repeats_s: Seconds of further calls, each verified too: a data race shows in some of them only.
    """
    op = registry.op(expected.problem.op)
    before = tuple(map_tensors(torch.clone, each) for each in expected.inputs)
    dtypes = _returned_dtypes(op, expected.inputs)
    _poison_free_memory(expected, dtypes)
    tolerances = {name: op.tolerance(expected.problem, dtypes[name].to_real()) for name in expected.tensors}
    errors = dict.fromkeys(expected.tensors, 0.0)
    reasons: list[str] = []
    until, calls = time.perf_counter() + repeats_s, 0
    while not calls or (not reasons and calls < MAX_CALLS and time.perf_counter() < until):
        calls += 1
        observed = _observe(op, function, expected.inputs, expected.problem.gradients)
        for name, truth in expected.tensors.items():
            error, reason = _compared(name, observed[name].cpu(), truth, dtypes[name], tolerances[name])
            errors[name] = max(errors[name], error)
            if reason is not None:
                reasons.append(reason if calls == 1 else f"{reason}, in call {calls} with the same inputs")
    for old, new in zip(before, expected.inputs, strict=True):
        reasons += [
            f"the implementation changed its input {name}"
            for name, tensor in tensors_of(new).items()
            if not _unchanged(tensors_of(old)[name], tensor)
        ]
    return Verdict(not reasons, errors, tolerances, "; ".join(reasons) or None)


def _compared(
    name: str, tensor: Tensor, truth: Tensor, dtype: torch.dtype, tolerance: float
) -> tuple[float, str | None]:
    """Return the error of a tensor, and why it is too large, or None."""
    if tensor.shape != truth.shape or tensor.dtype != dtype:
        return math.inf, f"{name} is {tensor.dtype} {tuple(tensor.shape)}: must be {dtype} {tuple(truth.shape)}"
    error = relative_error(tensor, truth)
    if error == math.inf:
        return error, f"{name} is not finite where it should be, or finite where it should not"
    if error <= tolerance:
        return error, None
    return error, f"{name} is off by {error:.1e} of its largest value; {tolerance:.1e} is allowed"


def relative_error(tensor: Tensor, truth: Tensor) -> float:
    """Return the largest difference as a share of the largest value of `truth`.

    It is infinite if one is finite and the other is not, or if infinities differ in sign.

    Where `truth` is zero throughout, or has nothing finite, the difference itself is returned.
    """
    tensor, truth = (torch.view_as_real(each) if each.is_complex() else each for each in (tensor, truth))
    tensor = tensor.double()
    largest = truth.abs().max().item()
    difference = tensor.sub(truth).abs_().max().item()  # not finite where any of the two is not
    if math.isfinite(difference) and math.isfinite(largest):
        return difference / largest if largest > 0 else difference
    finite = truth.isfinite()
    if not torch.equal(finite, tensor.isfinite()) or not torch.equal(
        truth[~finite].sign().nan_to_num(2.0), tensor[~finite].sign().nan_to_num(2.0)
    ):
        return math.inf
    if not finite.any():
        return 0.0
    difference = (tensor[finite] - truth[finite]).abs().max().item()
    scale = truth[finite].abs().max().item()
    return difference / scale if scale > 0 else difference


def _unchanged(old: Tensor, new: Tensor) -> bool:
    return torch.equal(old, new) or torch.equal(torch.nan_to_num(old), torch.nan_to_num(new))


def _observe(op: Op, function: Callable[..., Any], inputs: Inputs, gradients: bool) -> dict[str, Tensor]:
    """Return the outputs by name and, if asked for, the gradients of every input."""
    names = tuple(op.output_dtypes(inputs))
    if not gradients:
        with torch.no_grad():
            return dict(zip(names, function(*inputs), strict=True))
    leaves = tuple(map_tensors(_leaf, each) for each in inputs)
    output = function(*leaves)
    observed = {name: tensor.detach() for name, tensor in zip(names, output, strict=True)}
    named = _differentiated(op, leaves)
    found = torch.autograd.grad(
        output, list(named.values()), [_weights(tensor) for tensor in output], allow_unused=True
    )
    for (name, leaf), gradient in zip(named.items(), found, strict=True):
        observed[name] = torch.zeros_like(leaf) if gradient is None else gradient
    return observed


def _leaf(tensor: Tensor) -> Tensor:
    is_real_valued = tensor.is_floating_point() or tensor.is_complex()
    return tensor.detach().requires_grad_() if is_real_valued else tensor


def _differentiated(op: Op, inputs: Inputs) -> dict[str, Tensor]:
    """Return the inputs that have a gradient, by the name of that gradient."""
    return {
        f"grad_{name}{suffix}": tensor
        for suffix, each in zip(op.input_suffixes[: len(inputs)], inputs, strict=True)
        for name, tensor in tensors_of(each).items()
        if tensor.is_floating_point() or tensor.is_complex()
    }


def _weights(tensor: Tensor) -> Tensor:
    """Return the fixed gradient that flows into an output: the same numbers for every dtype that holds them."""
    generator = torch.Generator().manual_seed(tensor.numel())
    kind = torch.complex64 if tensor.is_complex() else torch.float32
    drawn = torch.randn(tensor.shape, generator=generator, dtype=kind)
    # Steps of 1/64 are exact in every dtype, so that the reference sees the very same gradient.
    steps = torch.view_as_real(drawn) if tensor.is_complex() else drawn
    steps.mul_(64).round_().clamp_(-127, 127).div_(64)
    return drawn.to(device=tensor.device, dtype=tensor.dtype)


def _returned_dtypes(op: Op, inputs: Inputs) -> dict[str, torch.dtype]:
    """Return the dtype of every output and of every gradient, by its name."""
    gradients = {name: tensor.dtype for name, tensor in _differentiated(op, inputs).items()}
    return {**op.output_dtypes(inputs), **gradients}


def _poison_free_memory(expected: ReferenceOutputs, dtypes: Mapping[str, torch.dtype]) -> None:
    """Leave NaN in the memory that the allocator will hand out next, so that an output never written shows.

    Filled and freed in the sizes of the expected tensors: allocators reuse blocks of the size just freed. Small
    tensors get many blocks, because an allocator may hand out an older one, in which right values lay, first.
    """
    for name, truth in expected.tensors.items():
        kind = dtypes[name]
        count = min(max(POISONED_BYTES // max(truth.numel() * kind.itemsize, 1), 4), 64)
        blocks = [torch.full(truth.shape, math.nan, dtype=kind, device=expected.problem.device) for _ in range(count)]
        del blocks


def _to_float64(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to("cpu", torch.complex128)
    return tensor.to("cpu", torch.float64) if tensor.is_floating_point() else tensor.cpu()
