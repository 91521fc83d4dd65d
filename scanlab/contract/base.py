"""Base class of problems, their checks, and the random numbers of their inputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from scanlab.errors import ProblemError, did_you_mean

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_SIZE = 2**63 - 1  # of a tensor of torch
# State updates of a problem that a reference solves in milliseconds.
MAX_SMALL_UPDATES = 2**18


def weight_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of weights beside inputs of `dtype`, and of arithmetic: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Problem:
    """A problem of an op: its sizes, dtype and options. Each op derives one frozen dataclass from it.

    The fields of a problem are numbers, strings and booleans, so that it is hashable and has a text form.

    Attributes:
        dtype: Name of the dtype of the inputs, such as "float32".
        device: Device type, such as "cpu".
        gradients: Whether outputs are differentiated too.
    """

    op: ClassVar[str]
    sizes: ClassVar[tuple[str, ...]] = ()
    # Fields that do not change which backend is fastest: problems that differ in them alone are one family.
    costless: ClassVar[tuple[str, ...]] = ()
    # Fields that `key` names although they have their default.
    always_named: ClassVar[tuple[str, ...]] = ()
    # The size that a tuning also varies, to draw time against it; none where empty.
    swept: ClassVar[str] = ""

    dtype: str
    device: str
    gradients: bool

    @property
    def key(self) -> str:
        """The canonical text of this problem: the fields that differ from the defaults. `parse` reads it."""
        parts = []
        for field in _fields(type(self)):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING or field.name in self.always_named or value != field.default:
                parts.append(f"{field.name}={str(value).lower() if isinstance(value, bool) else value}")
        return ",".join(parts)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the problem that `text`, such as "batch=1,dim=384,length=197,gradients=true", describes.

        Raises:
            ProblemError: A name is unknown, missing or given twice, or a value is not legal.
        """
        fields = {field.name: field for field in _fields(cls)}
        required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
        example = f"for example {','.join(f'{name}=8' for name in required)}"
        values: dict[str, object] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, separator, value = (piece.strip() for piece in part.partition("="))
            if not separator or name not in fields:
                raise ProblemError(
                    f"{part!r} in {text!r}: must be name=value with a name of {', '.join(fields)}; {example}."
                    f"{did_you_mean(name, fields)}"
                )
            if name in values:
                raise ProblemError(f"{text!r} names {name} twice: name it once.")
            values[name] = _parse_value(name, value, fields[name].type)
        missing = [name for name in required if name not in values]
        if missing:
            raise ProblemError(f"{text!r} lacks {', '.join(missing)}; {example}.")
        return cls(**values)

    @property
    def family(self) -> Self:
        """This problem with every size 1 and every costless field at its default: problems of a family share it."""
        defaults = {field.name: field.default for field in _fields(type(self))}
        return self.replace(**dict.fromkeys(self.sizes, 1), **{name: defaults[name] for name in self.costless})

    @property
    def swept_size(self) -> int:
        """The value of the size that `swept` names."""
        return int(getattr(self, self.swept))

    def distance(self, other: Problem) -> float:
        """Return the sum over the sizes of the absolute log ratio, so that twice and half are equally far.

        Args:
            other: Problem of the same op.
        """
        return sum(abs(math.log(getattr(self, size) / getattr(other, size))) for size in self.sizes)

    def small(self) -> Self:
        """Return this problem, or one of its kind that the reference solves in milliseconds; this one by default."""
        return self

    def replace(self, **changes: object) -> Self:
        """Return this problem with some fields changed."""
        changed: Self = dataclasses.replace(self, **changes)  # type: ignore[type-var]  # every problem is a dataclass
        return changed


def expect_sizes(problem: Problem) -> None:
    """Raise ProblemError unless every size of `problem` is one of torch's, at least 1, and its dtype is known."""
    for name in problem.sizes:
        value = getattr(problem, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ProblemError(f"{name}={value!r}: must be a whole number of at least 1.")
        if value > MAX_SIZE:
            raise ProblemError(f"{name} is a number of {value.bit_length()} bits: must be at most {MAX_SIZE}.")
    expect_one_of("dtype", problem.dtype, tuple(DTYPES))


def expect_one_of(name: str, value: str, legal: Sequence[str]) -> None:
    """Raise ProblemError unless the field `name` of a problem has one of the legal values."""
    if value not in legal:
        raise ProblemError(f"{name}={value!r}: must be one of {', '.join(legal)}.{did_you_mean(str(value), legal)}")


def expect_strided(inputs: NamedTuple) -> None:
    """Raise ProblemError if a tensor of `inputs` is sparse or blocked, which some ops of torch take for dense."""
    for name, tensor in zip(inputs._fields, inputs, strict=True):
        if isinstance(tensor, Tensor) and tensor.layout != torch.strided:
            raise ProblemError(f"{name} has the layout {tensor.layout}: must be dense, such as {name}.to_dense().")


class Draws:
    """Random float64 numbers for test inputs, which depend on the seed and on the order of the calls alone."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw numbers between low and high."""
        return low + (high - low) * torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def step_sizes(self, *shape: int) -> Tensor:
        """Draw step sizes from 0.03 to 0.3; with `rates`, a step decays by 0.99 down to 0.05."""
        return torch.exp(self.uniform(math.log(0.03), math.log(0.3), *shape))

    def rates(self, *shape: int) -> Tensor:
        """Draw decay rates from 0.3 to 10."""
        return torch.exp(self.uniform(math.log(0.3), math.log(10.0), *shape))


def inverse_softplus(values: Tensor) -> Tensor:
    """Return the numbers whose softplus is `values`."""
    return values + torch.log(-torch.expm1(-values))


def _fields(problem: type[Problem]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(problem)  # type: ignore[arg-type]  # every problem is a dataclass


def _parse_value(name: str, value: str, kind: object) -> object:
    if kind == "int":
        try:
            return int(value)
        except ValueError:
            raise ProblemError(f"{name}={value!r}: must be a whole number of at least 1.") from None
    if kind == "float":
        try:
            return float(value)
        except ValueError:
            raise ProblemError(f"{name}={value!r}: must be a number.") from None
    if kind == "bool":
        if value.lower() not in ("true", "false"):
            raise ProblemError(f"{name}={value!r}: must be true or false.")
        return value.lower() == "true"
    return value
