"""The op `mamba_front`: projections and convolution before the scan of a Mamba block; see `weights.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.backend import OpFn
from scanlab.contract.base import DTYPE_NAMES, DTYPES, Draws, Problem, expect_one_of, expect_sizes, weight_dtype
from scanlab.contract.op import Inputs, Op, Work
from scanlab.errors import ProblemError
from scanlab_kernels.causal_conv1d.arguments import MAX_WIDTH
from scanlab_kernels.causal_conv1d.torch import by_taps
from scanlab_kernels.linear.weights import PrepackedWeight
from scanlab_kernels.mamba_front.weights import DirectionWeights, Front, FrontWeights, InProjection, check
from scanlab_kernels.weight_cache import RecentWeights


class FrontInputs(NamedTuple):
    """The tensors of one front.

    Attributes:
        hidden: (batch, length, model).
        in_weight: (2 dim, model), the dtype of hidden, as all other weights but those of the convolutions.
        in_bias: (2 dim,) or None.
        conv_weight, conv_bias: (dim, width) and (dim,), any floating dtype; conv_bias may be None.
        x_weight: (rank + 2 state, dim).
        dt_weight: (dim, rank).
        prepacked: Holder of the weights above. One that is of other tensors, or None, makes an implementation keep
            the forms of the weights that it saw last.
    """

    hidden: Tensor
    in_weight: Tensor
    in_bias: Tensor | None
    conv_weight: Tensor
    conv_bias: Tensor | None
    x_weight: Tensor
    dt_weight: Tensor
    conv_weight_reverse: Tensor | None = None
    conv_bias_reverse: Tensor | None = None
    x_weight_reverse: Tensor | None = None
    dt_weight_reverse: Tensor | None = None
    prepacked: FrontWeights | None = None


class FrontOutput(NamedTuple):
    """z, u, delta (batch, length, dim) and B, C (batch, length, state), the dtype of hidden."""

    z: Tensor
    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor


class BidirectionalFrontOutput(NamedTuple):
    """`FrontOutput`, and the arguments of the scan of the reverse direction, in natural order of time."""

    z: Tensor
    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    u_reverse: Tensor
    delta_reverse: Tensor
    B_reverse: Tensor
    C_reverse: Tensor


@dataclass(frozen=True, kw_only=True)
class FrontProblem(Problem):
    """The front of a block of `dim` channels on `length` steps of `model` numbers.

    Attributes:
        direction: Forward, or bidirectional with a second set of weights for the reverse direction.
    """

    op: ClassVar[str] = "mamba_front"
    sizes: ClassVar[tuple[str, ...]] = ("batch", "length", "model", "dim", "rank", "state", "width")
    costless: ClassVar[tuple[str, ...]] = ("has_bias", "has_conv_bias")
    always_named: ClassVar[tuple[str, ...]] = ("state",)
    swept: ClassVar[str] = "length"

    batch: int
    length: int
    model: int
    dim: int
    rank: int
    state: int = 16
    width: int = 4
    dtype: str = "float32"
    device: str = "cpu"
    direction: Literal["forward", "bidirectional"] = "forward"
    gradients: bool = False
    has_bias: bool = False
    has_conv_bias: bool = True

    def __post_init__(self) -> None:
        expect_sizes(self)
        if self.width > MAX_WIDTH:
            raise ProblemError(f"width={self.width}: must be at most {MAX_WIDTH}.")
        expect_one_of("direction", self.direction, ("forward", "bidirectional"))

    @classmethod
    def of(cls, inputs: FrontInputs, *, gradients: bool = False) -> FrontProblem:
        """Return the problem that these tensors pose.

        Raises:
            ProblemError: They do not fit together, or there is nothing to compute.
        """
        hidden, weights = inputs.hidden, weights_of(inputs)
        check(hidden, weights)
        if hidden.numel() == 0:
            raise ProblemError(f"hidden is {tuple(hidden.shape)}: every size must be at least 1.")
        first = weights.directions[0]
        rank, state, _ = first.sizes
        return cls(
            batch=hidden.shape[0],
            length=hidden.shape[1],
            model=hidden.shape[2],
            dim=weights.into.dim,
            rank=rank,
            state=state,
            width=first.conv_weight.shape[1],
            dtype=DTYPE_NAMES[hidden.dtype],
            device=hidden.device.type,
            direction="forward" if len(weights.directions) == 1 else "bidirectional",
            gradients=gradients,
            has_bias=inputs.in_bias is not None,
            has_conv_bias=inputs.conv_bias is not None,
        )


def weights_of(inputs: FrontInputs) -> FrontWeights:
    """Return the weights of `inputs`, in holders that are new."""
    into = InProjection(PrepackedWeight(inputs.in_weight), inputs.in_bias)
    return FrontWeights(into, *(_direction(*each) for each in _tensors_by_direction(inputs)))


def _tensors_by_direction(inputs: FrontInputs) -> Iterator[tuple[Tensor, Tensor | None, Tensor, Tensor]]:
    """Yield the weights of each direction that is there."""
    for taps, bias, x, dt in (inputs[3:7], inputs[7:11]):
        if taps is not None and x is not None and dt is not None:
            yield taps, bias, x, dt


def _direction(conv_weight: Tensor, conv_bias: Tensor | None, x: Tensor, dt: Tensor) -> DirectionWeights:
    return DirectionWeights(conv_weight, conv_bias, PrepackedWeight(x), PrepackedWeight(dt))


def inputs_of(hidden: Tensor, weights: FrontWeights) -> FrontInputs:
    """Return the inputs of a front with weights that are held."""
    tensors: list[Any] = [hidden, weights.into.weight.weight, weights.into.bias]
    for direction in weights.directions:
        tensors += direction.conv_weight, direction.conv_bias, direction.x.weight, direction.dt.weight
    return FrontInputs(*tensors)._replace(prepacked=weights)


def runner(key: Hashable, bind: Callable[[FrontWeights], Front]) -> OpFn:
    """Return the op on `FrontInputs` by the front that `bind` makes of weights; `key` names that front."""
    recent = RecentWeights[FrontWeights]()

    def run(inputs: FrontInputs) -> FrontOutput | BidirectionalFrontOutput:
        given = inputs.prepacked
        if given is None or given.into.weight.weight is not inputs.in_weight:
            given = recent(lambda: weights_of(inputs), *inputs[1:-1])
        outputs = given.bound(key, bind)(inputs.hidden)
        return FrontOutput(*outputs) if len(outputs) == 5 else BidirectionalFrontOutput(*outputs)

    return run


def make_inputs(problem: FrontProblem, seed: int = 0) -> tuple[FrontInputs]:
    """Draw inputs and weights of about the scale that a trained block has."""
    draws = Draws(seed)
    dim, model, rank, state = problem.dim, problem.model, problem.rank, problem.state
    dtype = DTYPES[problem.dtype]
    wide = weight_dtype(dtype)

    def normal(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return draws.normal(*shape).div(math.sqrt(shape[-1])).to(problem.device, kind)

    def direction() -> tuple[Tensor | None, ...]:
        kind = dtype if problem.gradients else wide  # gradients are no more precise than their inputs
        bias = normal(dim, kind=kind)
        return (
            normal(dim, problem.width, kind=kind),
            bias if problem.has_conv_bias else None,
            normal(rank + 2 * state, dim),
            normal(dim, rank),
        )

    hidden = draws.normal(problem.batch, problem.length, model)
    weight, bias = normal(2 * dim, model), normal(2 * dim)
    forward, reverse = direction(), direction()
    return (
        FrontInputs(
            hidden.to(problem.device, dtype),
            weight,
            bias if problem.has_bias else None,
            *forward,  # type: ignore[arg-type]  # only the bias may be None
            *(reverse if problem.direction == "bidirectional" else ()),
        ),
    )


def reference(problem: FrontProblem) -> Callable[[FrontInputs], NamedTuple]:
    """Return the formulas in the dtype of the inputs."""

    def front(inputs: FrontInputs) -> NamedTuple:
        x, z = F.linear(inputs.hidden, inputs.in_weight, inputs.in_bias).chunk(2, dim=2)
        results = [z]
        for reverse, (taps, bias, x_weight, dt_weight) in enumerate(_tensors_by_direction(inputs)):
            u = by_taps(x.mT, taps, bias, None, None, True, bool(reverse)).mT
            low_rank, B, C = F.linear(u, x_weight).split([problem.rank, problem.state, problem.state], dim=2)
            results += u, F.linear(low_rank, dt_weight), B, C
        return FrontOutput(*results) if len(results) == 5 else BidirectionalFrontOutput(*results)

    return front


def output_dtypes(inputs: Inputs) -> Mapping[str, torch.dtype]:
    """Return the dtype of each output, which is that of hidden."""
    kind = FrontOutput if inputs[0].conv_weight_reverse is None else BidirectionalFrontOutput
    return dict.fromkeys(kind._fields, inputs[0].hidden.dtype)


def work(problem: FrontProblem) -> Work:
    """Return the multiply-adds of products and convolutions, an exponential for each SiLU, and the bytes."""
    directions = 2 if problem.direction == "bidirectional" else 1
    rows, dim, selected = problem.batch * problem.length, problem.dim, problem.rank + 2 * problem.state
    each = dim * (problem.width + selected + problem.rank)
    weights = 2 * dim * problem.model + directions * dim * (selected + problem.rank)
    numbers = rows * (problem.model + dim + directions * (2 * dim + 2 * problem.state)) + weights
    multiply_adds = rows * (2 * dim * problem.model + directions * each)
    item = DTYPES[problem.dtype].itemsize
    return Work(multiply_adds, rows * dim * directions, numbers * item, problem.dtype)


PLAIN = FrontProblem(batch=2, length=37, model=20, dim=33, rank=3, state=5)
OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"dtype": "float64"},
    {"dtype": "bfloat16"},
    {"dtype": "float16"},
    {"has_bias": True},
    {"has_conv_bias": False},
    {"width": 2},
)
# The smallest; one step; past a panel of features and past a piece of time.
SIZES: tuple[dict[str, object], ...] = (
    {"batch": 1, "length": 1, "model": 1, "dim": 1, "rank": 1, "state": 1, "width": 1},
    {"batch": 3, "length": 1, "dim": 24},
    {"batch": 1, "length": 131, "dim": 70, "model": 48},
)


def _corners() -> Iterator[FrontProblem]:
    for gradients in (False, True):
        for direction in ("forward", "bidirectional"):
            asked = PLAIN.replace(direction=direction, gradients=gradients)
            yield from (asked.replace(**options) for options in OPTIONS)
        yield from (PLAIN.replace(gradients=gradients, **sizes) for sizes in SIZES)


PROBES = (
    FrontProblem(batch=1, length=301, model=48, dim=200, rank=12, direction="bidirectional"),
    FrontProblem(batch=2, length=131, model=48, dim=70, rank=5, dtype="bfloat16"),
)

op = Op(
    name="mamba_front",
    summary="input projection, convolution, and the projections to the operands of the scan",
    problem=FrontProblem,
    make_inputs=make_inputs,
    reference=reference,
    output_dtypes=output_dtypes,
    work=work,
    corners=tuple(_corners()),
    probes=PROBES,
    # Others serve where they were measured faster on this kind of silicon.
    fallbacks=("mamba_front_composed",),
)
