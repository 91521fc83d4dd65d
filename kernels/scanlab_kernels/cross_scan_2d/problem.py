"""Problems of the scan of a feature map in four directions, their tensors, and a glossary of their names.

    u           (batch, dim, height, width)         feature map
    delta       (batch, 4, dim, height, width)      step size of each direction before bias and softplus;
                (batch, 4, rank, height, width)     or its low rank, which dt_weight projects
    A           (4, dim, state)                     decay rates, real
    B, C        (batch, 4, state, height, width)    input and output projections of each direction
    D           (4, dim)                            skip connections
    delta_bias  (4, dim)                            added to delta before the softplus
    dt_weight   (4, dim, rank)                      projects the low rank of delta, where that is given

Direction 0 goes through the rows from the top left to the bottom right, 1 through the columns, 2 and 3 are 0 and 1 from
the last position to the first. In the order of a direction k, with p the position of a step and q that of the one
before,

    delta'[k, p] = softplus(delta[k, p] + delta_bias[k])
    h[k, p]      = exp(delta'[k, p] A[k]) h[k, q] + delta'[k, p] B[k, p] u[p]
    out[p]       = sum over k of <C[k, p], h[k, p]> + D[k] u[p]

All tensors are in the order of positions: nothing is laid out by direction.

Source: Liu et al. 2024, VMamba, section 4.3; MzeroMiko/VMamba@2ed52ea, classification/models/csm_triton.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from scanlab.contract.base import (
    DTYPE_NAMES,
    DTYPES,
    MAX_SMALL_UPDATES,
    Draws,
    Problem,
    expect_one_of,
    expect_sizes,
    inverse_softplus,
    weight_dtype,
)
from scanlab.errors import ProblemError
from scanlab_kernels.checks import expect_like, spell

DIRECTIONS = 4
LAYOUTS = ("channel_last", "channel_first")


class CrossScanInputs(NamedTuple):
    """The tensors of one call; shapes in the glossary of this module.

    u, delta, B and C have the dtype of the problem; all others are float32, or float64 with float64.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    delta_bias: Tensor | None = None
    dt_weight: Tensor | None = None


class CrossScanOutput(NamedTuple):
    """The output of a call: out (batch, dim, height, width) in the dtype of u."""

    out: Tensor


CrossScanFn = Callable[[CrossScanInputs], CrossScanOutput]


def check(inputs: CrossScanInputs) -> None:
    """Raise ProblemError unless the tensors of `inputs` fit together; sizes of u may be 0."""
    u, A = inputs.u, inputs.A
    if u.dim() != 4 or u.dtype not in DTYPE_NAMES:
        raise ProblemError(f"u is {spell(u)}: must be (batch, dim, height, width) of {', '.join(DTYPES)}.")
    if A.dim() != 3 or A.shape[2] == 0:
        raise ProblemError(f"A is {spell(A)}: must be (4, dim, state).")
    batch, dim, height, width = u.shape
    state, weight, dt_weight = A.shape[2], weight_dtype(u.dtype), inputs.dt_weight
    if dt_weight is not None and (dt_weight.dim() != 3 or dt_weight.shape[2] == 0):
        raise ProblemError(f"dt_weight is {spell(dt_weight)}: must be (4, dim, rank).")
    channels = dim if dt_weight is None else dt_weight.shape[2]
    expected = {
        "delta": ((batch, DIRECTIONS, channels, height, width), u.dtype),
        "A": ((DIRECTIONS, dim, state), weight),
        "B": ((batch, DIRECTIONS, state, height, width), u.dtype),
        "C": ((batch, DIRECTIONS, state, height, width), u.dtype),
        "D": ((DIRECTIONS, dim), weight),
        "delta_bias": ((DIRECTIONS, dim), weight),
        "dt_weight": ((DIRECTIONS, dim, channels), weight),
    }
    expect_like(inputs, u, expected)


def full_delta(inputs: CrossScanInputs) -> Tensor:
    """Return delta (batch, 4, dim, height, width), projected where its low rank is given, channels adjacent."""
    low, weight = inputs.delta, inputs.dt_weight
    if weight is None:
        return low
    batch, _, rank, height, width = low.shape
    positions = low.permute(1, 0, 3, 4, 2).reshape(DIRECTIONS, -1, rank)
    delta = torch.bmm(positions.to(weight.dtype), weight.mT).to(low.dtype)
    return delta.view(DIRECTIONS, batch, height, width, -1).permute(1, 0, 4, 2, 3)


@dataclass(frozen=True, kw_only=True)
class CrossScanProblem(Problem):
    """A scan of a feature map in four directions.

    Attributes:
        gradients: Whether the output is differentiated too.
        layout: The axis of u and delta whose stride is 1.
        rank: Channels of the low rank of delta; 0 where delta itself is given.
    """

    op: ClassVar[str] = "cross_scan_2d"
    sizes: ClassVar[tuple[str, ...]] = ("batch", "dim", "height", "width", "state")
    costless: ClassVar[tuple[str, ...]] = ("has_D", "has_delta_bias")

    batch: int
    dim: int
    height: int
    width: int
    state: int
    dtype: str = "float32"
    device: str = "cpu"
    gradients: bool = False
    has_D: bool = True
    has_delta_bias: bool = True
    delta_softplus: bool = True
    layout: Literal["channel_last", "channel_first"] = "channel_last"
    rank: int = 0

    def __post_init__(self) -> None:
        expect_sizes(self)
        expect_one_of("layout", self.layout, LAYOUTS)
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 0:
            raise ProblemError(f"rank={self.rank!r}: must be a whole number, 0 where delta itself is given.")

    @classmethod
    def of(cls, inputs: CrossScanInputs, *, delta_softplus: bool, gradients: bool = False) -> CrossScanProblem:
        """Return the problem that the tensors of `inputs` pose.

        Raises:
            ProblemError: The tensors do not fit together, or there is nothing to scan.
        """
        check(inputs)
        u = inputs.u
        if u.numel() == 0:
            raise ProblemError(f"u is {spell(u)}: every size must be at least 1.")
        batch, dim, height, width = u.shape
        state = inputs.A.shape[2]
        return cls(
            batch=batch,
            dim=dim,
            height=height,
            width=width,
            state=state,
            dtype=DTYPE_NAMES[u.dtype],
            device=u.device.type,
            gradients=gradients,
            has_D=inputs.D is not None,
            has_delta_bias=inputs.delta_bias is not None,
            delta_softplus=delta_softplus,
            layout="channel_last" if u.stride(1) == 1 else "channel_first",
            rank=0 if inputs.dt_weight is None else inputs.dt_weight.shape[2],
        )

    @property
    def family(self) -> CrossScanProblem:
        """This problem with every size 1, and rank 1 where it has one: the stages of a model share a family."""
        return super().family.replace(rank=min(self.rank, 1))

    @property
    def state_updates(self) -> int:
        """State updates of one forward pass, in all directions."""
        return DIRECTIONS * self.batch * self.dim * self.height * self.width * self.state

    def small(self) -> CrossScanProblem:
        """Return this problem, or one like it of a smaller map and fewer channels where it is large."""
        if self.state_updates <= MAX_SMALL_UPDATES:
            return self
        return self.replace(batch=1, dim=min(self.dim, 40), height=min(self.height, 17), width=min(self.width, 19))

    @property
    def min_bytes(self) -> int:
        """Bytes that one forward pass must read and write at least, each tensor once."""
        item = DTYPES[self.dtype].itemsize
        positions = self.batch * self.height * self.width
        maps = 2 * self.dim + DIRECTIONS * ((self.rank or self.dim) + 2 * self.state)
        return item * positions * maps + max(4, item) * DIRECTIONS * self.dim * (self.state + 2 + self.rank)


def make_inputs(problem: CrossScanProblem, seed: int = 0) -> tuple[CrossScanInputs]:
    """Return reproducible random inputs for `problem` that make errors visible.

    Decays range from 0.99 down to about 0.05 a step, so that both long and short memories matter; every direction has
    rates of its own, so that an exchange of two directions shows.
    """
    draws = Draws(seed)
    normal = draws.normal
    batch, dim, height, width, state = (getattr(problem, name) for name in problem.sizes)
    dtype = DTYPES[problem.dtype]
    weight = weight_dtype(dtype)

    def put(values: Tensor, to: torch.dtype) -> Tensor:
        return values.to(device=problem.device, dtype=to)

    def maps(values: Tensor) -> Tensor:
        placed = put(values, dtype)
        last = problem.layout == "channel_last"
        return placed.movedim(-3, -1).contiguous().movedim(-1, -3) if last else placed

    delta, bias, dt_weight = _step_sizes(problem, draws)
    rates = draws.rates(DIRECTIONS, dim, state)
    projection = (batch, DIRECTIONS, state, height, width)
    return (
        CrossScanInputs(
            u=maps(normal(batch, dim, height, width)),
            delta=maps(delta),
            A=put(-rates, weight),
            B=maps(normal(*projection)),
            C=maps(normal(*projection)),
            D=put(normal(DIRECTIONS, dim), weight) if problem.has_D else None,
            delta_bias=put(bias, weight) if problem.has_delta_bias else None,
            dt_weight=None if dt_weight is None else put(dt_weight, weight),
        ),
    )


def _step_sizes(problem: CrossScanProblem, draws: Draws) -> tuple[Tensor, Tensor, Tensor | None]:
    """Draw delta or its low rank, delta_bias and, for a low rank, dt_weight."""
    batch, dim, height, width, _ = (getattr(problem, name) for name in problem.sizes)
    step = draws.step_sizes(DIRECTIONS, dim)
    if problem.rank:
        level = inverse_softplus(step) if problem.delta_softplus else step
        share = 0.5 if problem.has_delta_bias else 1.0  # of delta + delta_bias that is delta
        dt_weight = share * level[..., None] * draws.uniform(0.5, 1.5, DIRECTIONS, dim, problem.rank) / problem.rank
        low = torch.exp(0.5 * draws.normal(batch, DIRECTIONS, problem.rank, height, width))
        return low, (1 - share) * level, dt_weight
    steps = step[..., None, None] * torch.exp(0.5 * draws.normal(batch, DIRECTIONS, dim, height, width))
    delta = inverse_softplus(steps) if problem.delta_softplus else steps
    bias = draws.uniform(-1.0, 0.5, DIRECTIONS, dim)
    return delta - bias[..., None, None] if problem.has_delta_bias else delta, bias, None
