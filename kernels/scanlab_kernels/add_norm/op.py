"""The op `add_norm`: residual add with RMSNorm or LayerNorm; the mathematics is in `arguments.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from scanlab.contract.backend import OpFn
from scanlab.contract.base import DTYPE_NAMES, DTYPES, Draws, Problem, expect_one_of, expect_sizes, weight_dtype
from scanlab.contract.op import Inputs, Op, Work
from scanlab.errors import ProblemError
from scanlab_kernels.add_norm import arguments
from scanlab_kernels.checks import wide

KINDS = ("rms", "layer")


class AddNormInputs(NamedTuple):
    """The tensors of one call.

    Attributes:
        hidden: (..., dim).
        residual: Like hidden, in its dtype or float32; None adds nothing.
        weight, bias: (dim,), any floating dtype; bias may be None.
        eps: Added to the mean square.
    """

    hidden: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor | None = None
    eps: float = 1e-5


class AddNormOutput(NamedTuple):
    """out and total, shaped like hidden; out in its dtype, total in float32 where `residual_in_fp32`."""

    out: Tensor
    total: Tensor


@dataclass(frozen=True, kw_only=True)
class AddNormProblem(Problem):
    """The normalised sum of `rows` rows of `dim` numbers."""

    op: ClassVar[str] = "add_norm"
    sizes: ClassVar[tuple[str, ...]] = ("rows", "dim")
    costless: ClassVar[tuple[str, ...]] = ("has_bias",)

    rows: int
    dim: int
    dtype: str = "float32"
    device: str = "cpu"
    gradients: bool = False
    kind: Literal["rms", "layer"] = "rms"
    has_residual: bool = True
    has_bias: bool = False
    residual_in_fp32: bool = False

    def __post_init__(self) -> None:
        expect_sizes(self)
        expect_one_of("kind", self.kind, KINDS)

    @classmethod
    def of(
        cls,
        inputs: AddNormInputs,
        *,
        kind: Literal["rms", "layer"] = "rms",
        residual_in_fp32: bool = False,
        gradients: bool = False,
    ) -> AddNormProblem:
        """Return the problem that these tensors pose.

        Raises:
            ProblemError: They do not fit together, or there is nothing to normalise.
        """
        hidden, residual, weight, bias, _ = inputs
        arguments.check(hidden, residual, weight, bias, kind)
        if hidden.numel() == 0:
            raise ProblemError(f"hidden is {tuple(hidden.shape)}: every size must be at least 1.")
        return cls(
            rows=hidden.numel() // hidden.shape[-1],
            dim=hidden.shape[-1],
            dtype=DTYPE_NAMES[hidden.dtype],
            device=hidden.device.type,
            gradients=gradients,
            kind=kind,
            has_residual=residual is not None,
            has_bias=bias is not None,
            residual_in_fp32=residual_in_fp32,
        )


def call(problem: AddNormProblem, ops: Any) -> OpFn:
    """Return the norm by a namespace of ops."""
    op, centred, wide_total = ops.add_norm, problem.kind == "layer", problem.residual_in_fp32
    return lambda inputs: AddNormOutput(*op(*inputs, centred, wide_total))


def make_inputs(problem: AddNormProblem, seed: int = 0) -> tuple[AddNormInputs]:
    """Draw rows whose mean is large and whose scales differ widely."""
    draws = Draws(seed)
    dtype = DTYPES[problem.dtype]
    wide_dtype = weight_dtype(dtype)

    def constant() -> Tensor:
        # The gradient is taken at the rounded sum, so that those of the weights are no more precise than the sum.
        return draws.normal(problem.dim).to(problem.device, dtype if problem.gradients else wide_dtype)

    def rows(kind: torch.dtype) -> Tensor:
        values = 1 + draws.normal(problem.rows, problem.dim)
        scales = torch.exp(draws.normal(problem.rows, 1))
        return (values * scales).to(problem.device, kind)

    hidden = rows(dtype)
    residual = rows(wide_dtype if problem.residual_in_fp32 else dtype)
    weight, bias = constant(), constant()
    return (
        AddNormInputs(hidden, residual if problem.has_residual else None, weight, bias if problem.has_bias else None),
    )


def reference(problem: AddNormProblem) -> Callable[[AddNormInputs], AddNormOutput]:
    """Return the formulas, in the dtype of the inputs."""

    def add_norm(inputs: AddNormInputs) -> AddNormOutput:
        hidden, residual, weight, bias, eps = inputs
        total = hidden if residual is None else hidden + residual
        values = total if problem.kind == "rms" else total - total.mean(-1, keepdim=True)
        out = values / torch.sqrt(values.square().mean(-1, keepdim=True) + eps) * weight
        return AddNormOutput(out if bias is None else out + bias, total)

    return add_norm


def output_dtypes(inputs: Inputs) -> Mapping[str, torch.dtype]:
    """Return the dtypes of the outputs; a residual in float32 asks for a total in float32."""
    hidden, residual = inputs[0].hidden, inputs[0].residual
    return {"out": hidden.dtype, "total": hidden.dtype if residual is None else residual.dtype}


def work(problem: AddNormProblem) -> Work:
    """Return three multiply-adds for each number, and the bytes of both inputs and outputs."""
    numbers = problem.rows * problem.dim
    item = DTYPES[problem.dtype].itemsize
    residual = wide(torch.empty(0, dtype=DTYPES[problem.dtype])).dtype.itemsize if problem.residual_in_fp32 else item
    return Work(3 * numbers, 0, numbers * (2 * item + (1 + problem.has_residual) * residual))


PLAIN = AddNormProblem(rows=5, dim=37)
OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"dtype": "float64"},
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "residual_in_fp32": True},
    {"dtype": "float16"},
    {"kind": "layer", "has_bias": True},
    {"kind": "layer", "dtype": "bfloat16", "residual_in_fp32": True},
    {"has_bias": True},
    {"has_residual": False},
)
SIZES = ((1, 1), (3, 2), (2, 129), (67, 192))  # the smallest; short; past a vector; past a task of rows


def _corners() -> Iterator[AddNormProblem]:
    for gradients in (False, True):
        yield from (PLAIN.replace(gradients=gradients, **options) for options in OPTIONS)
        yield from (PLAIN.replace(rows=rows, dim=dim, gradients=gradients) for rows, dim in SIZES)


PROBES = (
    AddNormProblem(rows=131, dim=203, dtype="bfloat16", residual_in_fp32=True),
    AddNormProblem(rows=19, dim=203, kind="layer", has_bias=True, gradients=True),
)

op = Op(
    name="add_norm",
    summary="residual add with RMSNorm or LayerNorm",
    problem=AddNormProblem,
    make_inputs=make_inputs,
    reference=reference,
    output_dtypes=output_dtypes,
    work=work,
    corners=tuple(_corners()),
    probes=PROBES,
)
