"""The op `causal_conv1d`: depthwise causal convolution along time, in one direction or in both at once.

The mathematics and the semantics at the ends of sequences are in `arguments.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scanlab.contract.backend import OpFn
from scanlab.contract.base import DTYPE_NAMES, DTYPES, Draws, Problem, expect_one_of, expect_sizes, weight_dtype
from scanlab.contract.op import Inputs, Op, Work
from scanlab.contract.problem import DIRECTIONS, LAYOUTS, Direction, Layout
from scanlab.errors import ProblemError
from scanlab_kernels.causal_conv1d import arguments
from scanlab_kernels.causal_conv1d.arguments import MAX_WIDTH


class ConvInputs(NamedTuple):
    """The tensors of one convolution; the weights of a direction that is not asked for are None.

    Attributes:
        x: (batch, dim, length).
        weight, weight_reverse: (dim, width), any floating dtype.
        bias, bias_reverse: (dim,) or None.
        seq_idx: (batch, length) int32, or None.
        initial_states: (batch, dim, width - 1), or None.
    """

    x: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    weight_reverse: Tensor | None = None
    bias_reverse: Tensor | None = None
    seq_idx: Tensor | None = None
    initial_states: Tensor | None = None


class ConvOutput(NamedTuple):
    """out (batch, dim, length), the dtype of x."""

    out: Tensor


class BidirectionalConvOutput(NamedTuple):
    """out and out_reverse (batch, dim, length), the dtype of x, both in natural order of time."""

    out: Tensor
    out_reverse: Tensor


@dataclass(frozen=True, kw_only=True)
class ConvProblem(Problem):
    """The convolution of `dim` channels with `width` taps each over `length` steps.

    Attributes:
        layout: The axis of x whose stride is 1; its shape is (batch, dim, length) in either case.
    """

    op: ClassVar[str] = "causal_conv1d"
    sizes: ClassVar[tuple[str, ...]] = ("batch", "dim", "length", "width")
    costless: ClassVar[tuple[str, ...]] = ("has_bias",)
    swept: ClassVar[str] = "length"

    batch: int
    dim: int
    length: int
    width: int = 4
    dtype: str = "float32"
    device: str = "cpu"
    direction: Direction = "forward"
    gradients: bool = False
    silu: bool = True
    has_bias: bool = True
    has_seq_idx: bool = False
    has_initial_states: bool = False
    layout: Layout = "length_last"

    def __post_init__(self) -> None:
        expect_sizes(self)
        if self.width > MAX_WIDTH:
            raise ProblemError(f"width={self.width}: must be at most {MAX_WIDTH}.")
        expect_one_of("direction", self.direction, DIRECTIONS)
        expect_one_of("layout", self.layout, LAYOUTS)
        if self.has_seq_idx and self.has_initial_states:
            raise ProblemError("has_seq_idx and has_initial_states: a packed batch has no one state to begin with.")
        if self.direction == "bidirectional" and (self.has_seq_idx or self.has_initial_states):
            raise ProblemError("direction=bidirectional has neither seq_idx nor initial_states: set them to false.")

    @classmethod
    def of(cls, inputs: ConvInputs, *, silu: bool = True, gradients: bool = False) -> ConvProblem:
        """Return the problem that these tensors pose.

        Raises:
            ProblemError: They do not fit together, or there is nothing to convolve.
        """
        arguments.check_inputs(*inputs)
        x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial_states = inputs
        width = next(each.shape[1] for each in (weight, weight_reverse) if each is not None)
        batch, dim, length = x.shape
        both = weight is not None and weight_reverse is not None
        return cls(
            batch=batch,
            dim=dim,
            length=length,
            width=width,
            dtype=DTYPE_NAMES[x.dtype],
            device=x.device.type,
            direction="bidirectional" if both else "reverse" if weight is None else "forward",
            gradients=gradients,
            silu=silu,
            has_bias=bias is not None or bias_reverse is not None,
            has_seq_idx=seq_idx is not None,
            has_initial_states=initial_states is not None,
            layout="dim_last" if dim > 1 and x.stride(1) == 1 else "length_last",
        )


def call(problem: ConvProblem, ops: Any) -> OpFn:
    """Return the convolution by a namespace of ops."""
    op, silu = ops.causal_conv1d, problem.silu
    if problem.direction == "bidirectional":
        return lambda inputs: BidirectionalConvOutput(*op(*inputs, silu))
    which = problem.direction == "reverse"
    return lambda inputs: ConvOutput(op(*inputs, silu)[which])


def make_inputs(problem: ConvProblem, seed: int = 0) -> tuple[ConvInputs]:
    """Draw inputs; taps differ by channel and position, and sequences end within a batch entry."""
    draws = Draws(seed)
    batch, dim, length, width = problem.batch, problem.dim, problem.length, problem.width
    dtype = DTYPES[problem.dtype]
    wide = weight_dtype(dtype)

    def normal(*shape: int, kind: torch.dtype = wide) -> Tensor:
        return draws.normal(*shape).to(problem.device, kind)

    x = normal(batch, dim, length, kind=dtype)
    weights = [normal(dim, width), normal(dim), normal(dim, width), normal(dim)]
    if not problem.has_bias:
        weights[1::2] = [None, None]  # type: ignore[list-item]  # absent biases
    starts = torch.randint(0, 7, (batch, length), generator=draws.generator) == 0
    states = normal(batch, dim, width - 1, kind=dtype)
    forward, reverse = problem.direction != "reverse", problem.direction != "forward"
    return (
        ConvInputs(
            x=x.mT.contiguous().mT if problem.layout == "dim_last" else x,
            weight=weights[0] if forward else None,
            bias=weights[1] if forward else None,
            weight_reverse=weights[2] if reverse else None,
            bias_reverse=weights[3] if reverse else None,
            seq_idx=(starts.cumsum(1) - 1).to(problem.device, torch.int32) if problem.has_seq_idx else None,
            initial_states=states if problem.has_initial_states else None,
        ),
    )


def reference(problem: ConvProblem) -> Callable[[ConvInputs], NamedTuple]:
    """Return the convolution with one multiply-add for each tap, in the dtype of its inputs."""
    from scanlab_kernels.causal_conv1d.torch import by_taps

    def convolve(inputs: ConvInputs) -> NamedTuple:
        x, weight, bias, weight_reverse, bias_reverse, seq_idx, states = inputs
        outs = [
            by_taps(x, taps, offset, seq_idx, states, problem.silu, reverse)
            for taps, offset, reverse in ((weight, bias, False), (weight_reverse, bias_reverse, True))
            if taps is not None
        ]
        return ConvOutput(*outs) if len(outs) == 1 else BidirectionalConvOutput(*outs)

    return convolve


def output_dtypes(inputs: Inputs) -> Mapping[str, torch.dtype]:
    """Return the dtype of each output, which is that of x."""
    both = inputs[0].weight is not None and inputs[0].weight_reverse is not None
    return dict.fromkeys(("out", "out_reverse") if both else ("out",), inputs[0].x.dtype)


def work(problem: ConvProblem) -> Work:
    """Return a multiply-add for each tap, an exponential for each SiLU, and the bytes of x and of each output."""
    outs = 2 if problem.direction == "bidirectional" else 1
    numbers = problem.batch * problem.dim * problem.length
    item = DTYPES[problem.dtype].itemsize
    return Work(problem.width * numbers * outs, numbers * outs * problem.silu, numbers * (1 + outs) * item)


PLAIN = ConvProblem(batch=2, dim=6, length=37)
OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"dtype": "float64"},
    {"dtype": "bfloat16", "layout": "dim_last"},
    {"dtype": "float16"},
    {"silu": False},
    {"has_bias": False},
    {"width": 3, "layout": "dim_last"},
    {"layout": "dim_last"},
)
SEQUENCES: tuple[dict[str, object], ...] = ({"has_seq_idx": True}, {"has_initial_states": True})
# (batch, dim, length, width): the smallest; shorter than the taps; the widest; past vectors and tiles.
SIZES = ((1, 1, 1, 1), (3, 5, 2, 4), (1, 3, 40, 16), (1, 67, 131, 4), (2, 16, 64, 2))


def _corners() -> Iterator[ConvProblem]:
    for gradients in (False, True):
        for direction in DIRECTIONS:
            asked = PLAIN.replace(direction=direction, gradients=gradients)
            every = OPTIONS if direction == "bidirectional" else (*OPTIONS, *SEQUENCES)
            yield from (asked.replace(**options) for options in every)
        for batch, dim, length, width in SIZES:
            yield PLAIN.replace(batch=batch, dim=dim, length=length, width=width, gradients=gradients)


PROBES = (
    ConvProblem(batch=2, dim=67, length=149, direction="bidirectional", layout="dim_last"),
    ConvProblem(batch=2, dim=67, length=149, gradients=True),
)

op = Op(
    name="causal_conv1d",
    summary="depthwise causal convolution along time, with SiLU",
    problem=ConvProblem,
    make_inputs=make_inputs,
    reference=reference,
    output_dtypes=output_dtypes,
    work=work,
    corners=tuple(_corners()),
    probes=PROBES,
)
