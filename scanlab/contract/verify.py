"""A scan against the oracle: outputs, last state and gradients, each as a share of the largest value.

The oracle is the `reference` backend in float64. Sums cancel in a scan, so an element-wise relative error
means nothing; every error here is the largest absolute difference of a tensor over the oracle's largest
absolute value of that tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scanlab.contract import registry
from scanlab.contract.backend import ScanFn
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem

# Rounding errors that a correct implementation can reach, by the dtype that a tensor is returned in: some
# 20 ulp for the accumulated sums of float32 and float64; for half precision one rounding of each direction
# and one of their sum, because the arithmetic inside is float32.
TOLERANCES = {
    torch.float64: 1e-13,
    torch.float32: 2e-5,
    torch.float16: 2.0**-9,
    torch.bfloat16: 2.0**-6,
}
# Steps that the oracle takes at once: few enough that its tensors stay in the cache.
PIECE = 32


@dataclass(frozen=True)
class Verdict:
    """Whether a scan agreed with the oracle, and by how much, tensor by tensor."""

    passed: bool
    errors: Mapping[str, float]
    tolerances: Mapping[str, float]
    reason: str | None = None

    @property
    def worst(self) -> float:
        """The largest error of any tensor, as a share of that tensor's largest value."""
        return max(self.errors.values(), default=math.inf)

    def to_json(self) -> dict[str, Any]:
        """This verdict as JSON values."""
        return {
            "passed": self.passed,
            "errors": dict(self.errors),
            "tolerances": dict(self.tolerances),
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Verdict:
        """The verdict that `to_json` wrote."""
        return cls(**values)


@dataclass(frozen=True)
class Expectation:
    """What the oracle says of a problem and its inputs; computed once, held against many scans."""

    problem: ScanProblem
    inputs: tuple[ScanInputs, ...]
    tensors: Mapping[str, Tensor]


def expectation(problem: ScanProblem, inputs: tuple[ScanInputs, ...]) -> Expectation:
    """The oracle's outputs, and gradients where the problem has them, for these inputs; computed on the CPU."""
    exact = problem.replace(dtype="float64", device="cpu")
    oracle = _oracle(exact) if problem.gradients else partial(_in_pieces, exact)
    return Expectation(
        problem, inputs, _observe(oracle, [_map(each, _to_float64) for each in inputs], problem.gradients)
    )


def _oracle(problem: ScanProblem) -> ScanFn:
    return registry.get("reference").build(problem, {"threads": 1})


def _in_pieces(problem: ScanProblem, *inputs: ScanInputs) -> ScanOutput:
    """The oracle's outputs, piece by piece of the length.

    The same steps in the same order. Whole, a long scan in float64 mostly waits for memory that is new at every call.
    """
    directions = ("forward", "reverse") if problem.direction == "bidirectional" else (problem.direction,)
    results = [_one_way(problem.replace(direction=way), each) for way, each in zip(directions, inputs, strict=True)]
    if len(results) == 1:
        return results[0]
    one, other = results
    return ScanOutput(one.out + other.out, torch.stack((one.last_state, other.last_state)))


def _one_way(problem: ScanProblem, inputs: ScanInputs) -> ScanOutput:
    pieces = []
    reverse = problem.direction == "reverse"
    starts = range(0, problem.length, PIECE)
    for start in reversed(starts) if reverse else starts:
        length = min(PIECE, problem.length - start)
        asked = problem.replace(length=length, has_initial_state=inputs.initial_state is not None)
        out, last_state = _oracle(asked)(_piece(inputs, problem, start, length))
        inputs = inputs.with_tensors(initial_state=last_state)
        pieces.append(out)
    return ScanOutput(torch.cat(pieces[::-1] if reverse else pieces, dim=-1), last_state)


def _piece(inputs: ScanInputs, problem: ScanProblem, start: int, length: int) -> ScanInputs:
    """The inputs of some consecutive steps; constants and the state before them stay."""
    columns = 2 if problem.complex_A else 1  # interleaved (real, imaginary) pairs
    widths = {"u": 1, "delta": 1, "z": 1, "B": columns, "C": columns}
    tensors = inputs.tensors()
    return inputs.with_tensors(
        **{
            name: tensors[name].narrow(-1, width * start, width * length)
            for name, width in widths.items()
            if name in tensors and tensors[name].dim() > 2
        }
    )


def verify(scan: ScanFn, expected: Expectation) -> Verdict:
    """The verdict on `scan`, built for `expected.problem`.

    Fails on an error above the tolerance of the returned dtype, a wrong shape or dtype, values that are not
    finite where the oracle's are, and on inputs that the scan has changed. What the scan raises is raised.
    """
    before = tuple(_map(each, torch.clone) for each in expected.inputs)
    _poison_free_memory(expected)
    observed = _observe(scan, expected.inputs, expected.problem.gradients)
    errors: dict[str, float] = {}
    tolerances: dict[str, float] = {}
    reasons: list[str] = []
    for name, truth in expected.tensors.items():
        tensor = observed[name].cpu()
        kind = _returned_dtype(name, expected)
        tolerances[name] = TOLERANCES[kind.to_real()]
        if tensor.shape != truth.shape or tensor.dtype != kind:
            errors[name] = math.inf
            reasons.append(f"{name} is {tensor.dtype} {tuple(tensor.shape)}: must be {kind} {tuple(truth.shape)}")
            continue
        errors[name] = relative_error(tensor, truth)
        if errors[name] == math.inf:
            reasons.append(f"{name} is not finite where it should be, or finite where it should not")
        elif not errors[name] <= tolerances[name]:
            reasons.append(
                f"{name} is off by {errors[name]:.1e} of its largest value; {tolerances[name]:.1e} is allowed"
            )
    for old, new in zip(before, expected.inputs, strict=True):
        reasons += [
            f"the scan changed its input {name}"
            for name, tensor in new.tensors().items()
            if not _unchanged(old.tensors()[name], tensor)
        ]
    return Verdict(not reasons, errors, tolerances, "; ".join(reasons) or None)


def relative_error(tensor: Tensor, truth: Tensor) -> float:
    """Largest difference over the largest value of `truth`; inf where finiteness, or a sign of infinity, differs.

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


def _observe(scan: ScanFn, inputs: Sequence[ScanInputs], gradients: bool) -> dict[str, Tensor]:
    if not gradients:
        with torch.no_grad():
            return ScanOutput(*scan(*inputs))._asdict()
    leaves = tuple(_map(each, lambda tensor: tensor.detach().requires_grad_()) for each in inputs)
    output = ScanOutput(*scan(*leaves))
    observed = {name: tensor.detach() for name, tensor in output._asdict().items()}
    named: dict[str, Tensor] = {}
    for direction, each in zip(("", "_back"), leaves, strict=False):
        named |= {f"grad_{name}{direction}": tensor for name, tensor in each.tensors().items()}
    found = torch.autograd.grad(
        output, list(named.values()), [_weights(tensor) for tensor in output], allow_unused=True
    )
    for (name, leaf), gradient in zip(named.items(), found, strict=True):
        observed[name] = torch.zeros_like(leaf) if gradient is None else gradient
    return observed


def _weights(tensor: Tensor) -> Tensor:
    """The fixed gradient that flows into an output: the same numbers for every dtype that holds them."""
    generator = torch.Generator().manual_seed(tensor.numel())
    kind = torch.complex64 if tensor.is_complex() else torch.float32
    drawn = torch.randn(tensor.shape, generator=generator, dtype=kind)
    # Steps of 1/64 are exact in every dtype, so that the oracle sees the very same gradient.
    steps = torch.view_as_real(drawn) if tensor.is_complex() else drawn
    steps.mul_(64).round_().clamp_(-127, 127).div_(64)
    return drawn.to(device=tensor.device, dtype=tensor.dtype)


def _returned_dtype(name: str, expected: Expectation) -> torch.dtype:
    first = expected.inputs[0]
    if name == "out":
        return first.u.dtype
    if name == "last_state":
        return first.A.dtype
    tensor: Tensor = getattr(first, name.removeprefix("grad_").removesuffix("_back"))
    return tensor.dtype


def _poison_free_memory(expected: Expectation) -> None:
    """Leave NaN in the memory that the allocator will hand out next, so that an output never written shows.

    Filled and freed in the sizes of the expected tensors: allocators reuse blocks of the size just freed.
    """
    for name, truth in expected.tensors.items():
        kind = _returned_dtype(name, expected)
        blocks = [torch.full(truth.shape, math.nan, dtype=kind, device=expected.inputs[0].u.device) for _ in range(4)]
        del blocks


def _to_float64(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.complex128 if tensor.is_complex() else torch.float64)


def _map(inputs: ScanInputs, function: Any) -> ScanInputs:
    return inputs.with_tensors(**{name: function(tensor) for name, tensor in inputs.tensors().items()})
