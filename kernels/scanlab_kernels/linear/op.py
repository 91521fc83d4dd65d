"""The op `linear`: x weight^T + bias, the product of a linear layer.

The weight is constant where a model infers, so that an implementation may keep it in a form of its own; making that
form (prepacking) does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.base import DTYPE_NAMES, DTYPES, Draws, Problem, expect_sizes
from scanlab.contract.op import Inputs, Op, Work
from scanlab.errors import ProblemError
from scanlab_kernels.checks import expect
from scanlab_kernels.linear.weights import PrepackedWeight


class LinearInputs(NamedTuple):
    """The tensors of one product.

    Attributes:
        x: (..., in_features).
        weight: (out_features, in_features), the dtype of x.
        bias: (out_features,), the dtype of x.
        prepacked: Holder of the forms of `weight` that implementations read. One that is of another tensor, or None,
            makes an implementation keep the forms of the weights that it saw last.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    prepacked: PrepackedWeight | None = None


class LinearOutput(NamedTuple):
    """out (..., out_features), the dtype of x."""

    out: Tensor


@dataclass(frozen=True, kw_only=True)
class LinearProblem(Problem):
    """The product of `rows` rows of in_features numbers with a weight of out_features rows."""

    op: ClassVar[str] = "linear"
    sizes: ClassVar[tuple[str, ...]] = ("rows", "in_features", "out_features")
    costless: ClassVar[tuple[str, ...]] = ("has_bias",)

    rows: int
    in_features: int
    out_features: int
    dtype: str = "float32"
    device: str = "cpu"
    gradients: bool = False
    has_bias: bool = False

    def __post_init__(self) -> None:
        expect_sizes(self)

    @classmethod
    def of(cls, inputs: LinearInputs, *, gradients: bool = False) -> LinearProblem:
        """Return the problem that these tensors pose.

        Raises:
            ProblemError: They do not fit together, or there is nothing to multiply.
        """
        x, weight, bias, _ = inputs
        if weight.dim() != 2 or x.dim() < 1:
            raise ProblemError(
                f"x is {tuple(x.shape)} and weight {tuple(weight.shape)}: must be (..., in) and (out, in)."
            )
        out_features, in_features = weight.shape
        expect("x", x, (*x.shape[:-1], in_features), weight)
        expect("weight", weight, (out_features, in_features), weight)
        if bias is not None:
            expect("bias", bias, (out_features,), weight)
        if x.numel() == 0 or weight.numel() == 0:
            raise ProblemError(
                f"x is {tuple(x.shape)} and weight {tuple(weight.shape)}: every size must be at least 1."
            )
        return cls(
            rows=x.numel() // in_features,
            in_features=in_features,
            out_features=out_features,
            dtype=DTYPE_NAMES[x.dtype],
            device=x.device.type,
            gradients=gradients,
            has_bias=bias is not None,
        )


def make_inputs(problem: LinearProblem, seed: int = 0) -> tuple[LinearInputs]:
    """Draw inputs whose terms cancel to a sum of about 1, so that an error in any term shows."""
    draws = Draws(seed)
    x, weight = draws.normal(problem.rows, problem.in_features), draws.normal(problem.out_features, problem.in_features)
    bias = draws.normal(problem.out_features)
    scaled = weight / problem.in_features**0.5

    def cast(values: Tensor) -> Tensor:
        return values.to(problem.device, DTYPES[problem.dtype])

    return (LinearInputs(cast(x), cast(scaled), cast(bias) if problem.has_bias else None),)


def reference(problem: LinearProblem) -> Callable[[LinearInputs], LinearOutput]:
    """Return the product by torch, in the dtype of its inputs."""
    return lambda inputs: LinearOutput(F.linear(inputs.x, inputs.weight, inputs.bias))


def output_dtypes(inputs: Inputs) -> Mapping[str, torch.dtype]:
    """Return the dtype of the output, which is that of x."""
    return {"out": inputs[0].x.dtype}


def work(problem: LinearProblem) -> Work:
    """Return the multiply-adds of the product, and the bytes of x, weight, bias and output, each once."""
    rows, into, out = problem.rows, problem.in_features, problem.out_features
    numbers = rows * into + into * out + rows * out + problem.has_bias * out
    return Work(rows * into * out, 0, numbers * DTYPES[problem.dtype].itemsize, problem.dtype)


# (rows, in_features, out_features): the smallest; short of every tile; one beyond each; deep; wide; few rows.
SIZES = ((1, 1, 1), (3, 5, 7), (8, 31, 19), (9, 16, 48), (33, 24, 49), (65, 300, 81), (137, 7, 100), (2, 129, 1000))


def _corners() -> Iterator[LinearProblem]:
    for (rows, into, out), dtype in product(SIZES, ("float32", "bfloat16")):
        yield LinearProblem(rows=rows, in_features=into, out_features=out, dtype=dtype, has_bias=rows % 2 == 1)
    plain = LinearProblem(rows=5, in_features=37, out_features=11, has_bias=True)
    for dtype in ("float32", "float64", "bfloat16", "float16"):
        yield plain.replace(dtype=dtype, gradients=True)
    for dtype in ("float64", "float16"):
        yield plain.replace(dtype=dtype)


PROBES = (
    LinearProblem(rows=131, in_features=203, out_features=97, has_bias=True),
    LinearProblem(rows=131, in_features=203, out_features=97, dtype="bfloat16"),
    LinearProblem(rows=7, in_features=203, out_features=97),
)

op = Op(
    name="linear",
    summary="the product of a linear layer, x weight^T + bias",
    problem=LinearProblem,
    make_inputs=make_inputs,
    reference=reference,
    output_dtypes=output_dtypes,
    work=work,
    corners=tuple(_corners()),
    probes=PROBES,
    # Others serve where they were measured faster on this kind of silicon.
    fallbacks=("linear_torch",),
)
