"""The op `state_update`: one decoding step of the selective scan; the mathematics is in `arguments.py`.

As an op it leaves its inputs as they are and returns the next state beside the output, which takes a copy of the
state. Where `in_place` is set, as decoding does, the state is updated itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.contract.backend import OpFn
from scanlab.contract.base import DTYPE_NAMES, DTYPES, Draws, Problem, expect_sizes, inverse_softplus, weight_dtype
from scanlab.contract.op import Inputs, Op, Work
from scanlab.errors import ProblemError
from scanlab_kernels.state_update import arguments


class StateUpdateInputs(NamedTuple):
    """The tensors of one step; shapes as in `scanlab.runtime.ops.selective_state_update`.

    Attributes:
        in_place: Update `state` itself instead of a copy.
    """

    state: Tensor
    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    dt_bias: Tensor | None = None
    state_batch_indices: Tensor | None = None
    in_place: bool = False


class StateUpdateOutput(NamedTuple):
    """out, shaped like x and in its dtype, and the state after the step, shaped like the one before it."""

    out: Tensor
    next_state: Tensor


@dataclass(frozen=True, kw_only=True)
class StateUpdateProblem(Problem):
    """One step of `heads` heads of `dim` channels with `state` numbers each.

    Attributes:
        groups: Groups of heads that share B and C.
        has_heads: Whether tensors have an axis of heads; without it there is one head.
        has_state_batch_indices: Whether the rows of the state are named by indices.
    """

    op: ClassVar[str] = "state_update"
    sizes: ClassVar[tuple[str, ...]] = ("batch", "heads", "dim", "state")
    costless: ClassVar[tuple[str, ...]] = ("has_D", "has_z", "has_dt_bias")
    always_named: ClassVar[tuple[str, ...]] = ("state",)

    batch: int
    dim: int
    state: int = 16
    heads: int = 1
    groups: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    gradients: bool = False
    has_heads: bool = False
    has_D: bool = True
    has_z: bool = True
    has_dt_bias: bool = True
    dt_softplus: bool = True
    has_state_batch_indices: bool = False
    log_A: bool = False

    def __post_init__(self) -> None:
        expect_sizes(self)
        if self.groups < 1 or self.heads % self.groups:
            raise ProblemError(f"groups={self.groups} does not divide heads={self.heads}.")
        if self.heads > 1 and not self.has_heads:
            raise ProblemError(f"heads={self.heads} with has_heads=false: set has_heads=true.")
        if self.gradients:
            raise ProblemError("gradients=true: a step of decoding has none.")

    @property
    def family(self) -> StateUpdateProblem:
        """This problem with every size and the groups 1, and every costless field at its default."""
        return super(StateUpdateProblem, self.replace(groups=1)).family

    @classmethod
    def of(
        cls, inputs: StateUpdateInputs, *, dt_softplus: bool = True, log_A: bool = False, gradients: bool = False
    ) -> StateUpdateProblem:
        """Return the problem that these tensors pose.

        Raises:
            ProblemError: They do not fit together, or there is nothing to compute.
        """
        state, x, _, _, B, _, D, z, dt_bias, indices, _ = inputs
        arguments.check(*inputs[:10])
        if x.numel() == 0 or state.numel() == 0:
            raise ProblemError(f"x is {tuple(x.shape)} and state {tuple(state.shape)}: no size may be 0.")
        return cls(
            batch=x.shape[0],
            dim=x.shape[-1],
            state=state.shape[-1],
            heads=x.shape[1] if x.dim() == 3 else 1,
            groups=B.shape[1] if x.dim() == 3 else 1,
            dtype=DTYPE_NAMES[x.dtype],
            device=x.device.type,
            has_heads=x.dim() == 3,
            has_D=D is not None,
            has_z=z is not None,
            has_dt_bias=dt_bias is not None,
            dt_softplus=dt_softplus,
            has_state_batch_indices=indices is not None,
            log_A=log_A,
        )


def call(problem: StateUpdateProblem, ops: Any) -> OpFn:
    """Return the step by a namespace of ops."""
    op, softplus, log_A = ops.selective_state_update, problem.dt_softplus, problem.log_A

    def step(inputs: StateUpdateInputs) -> StateUpdateOutput:
        state = inputs.state if inputs.in_place else inputs.state.clone()
        return StateUpdateOutput(op(state, *inputs[1:9], softplus, inputs.state_batch_indices, log_A), state)

    return step


def make_inputs(problem: StateUpdateProblem, seed: int = 0) -> tuple[StateUpdateInputs]:
    """Draw a state and inputs; decays reach from 0.99 down to 0.05, and padding stands among the indices."""
    draws = Draws(seed)
    dtype = DTYPES[problem.dtype]
    wide = weight_dtype(dtype)
    own = (problem.heads, problem.dim) if problem.has_heads else (problem.dim,)
    shared = (problem.groups, problem.state) if problem.has_heads else (problem.state,)

    def cast(values: Tensor, kind: torch.dtype) -> Tensor:
        return values.to(problem.device, kind)

    def normal(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return cast(draws.normal(*shape), kind)

    batch, rows = problem.batch, problem.batch + 2 * problem.has_state_batch_indices
    step = draws.step_sizes(batch, *own)
    dt = inverse_softplus(step) if problem.dt_softplus else step
    log_rates = draws.uniform(math.log(0.3), math.log(10.0), *own, problem.state)
    indices = torch.randperm(rows, generator=draws.generator)[:batch].to(torch.int32)
    indices[-1] = -1 if batch > 1 else indices[-1]
    return (
        StateUpdateInputs(
            state=normal(rows, *own, problem.state),
            x=normal(batch, *own),
            dt=cast(dt - 0.25 if problem.has_dt_bias else dt, dtype),
            A=cast(log_rates if problem.log_A else -torch.exp(log_rates), wide),
            B=normal(batch, *shared),
            C=normal(batch, *shared),
            D=normal(*own, kind=wide) if problem.has_D else None,
            z=normal(batch, *own) if problem.has_z else None,
            dt_bias=cast(torch.full(own, 0.25), wide) if problem.has_dt_bias else None,
            state_batch_indices=indices.to(problem.device) if problem.has_state_batch_indices else None,
        ),
    )


def reference(problem: StateUpdateProblem) -> Callable[[StateUpdateInputs], StateUpdateOutput]:
    """Return the recurrence of one step, in the dtype of the inputs, one batch entry after another."""

    def step(inputs: StateUpdateInputs) -> StateUpdateOutput:
        out, state = torch.zeros_like(inputs.x), inputs.state.clone()
        indices = inputs.state_batch_indices
        rows = range(len(out)) if indices is None else indices.tolist()
        for entry, row in enumerate(rows):
            if row >= 0:
                out[entry], state[row] = _entry(problem, inputs, entry, state[row])
        return StateUpdateOutput(out, state)

    return step


def _entry(problem: StateUpdateProblem, inputs: StateUpdateInputs, entry: int, h: Tensor) -> tuple[Tensor, Tensor]:
    """Return output and next state of a batch entry whose state is h."""
    x, dt, B, C = (each[entry] for each in (inputs.x, inputs.dt, inputs.B, inputs.C))
    if problem.has_heads:
        B, C = (each.repeat_interleave(problem.heads // problem.groups, dim=0)[:, None] for each in (B, C))
    dt = dt if inputs.dt_bias is None else dt + inputs.dt_bias
    dt = (F.softplus(dt) if problem.dt_softplus else dt)[..., None]
    rates = -torch.exp(inputs.A) if problem.log_A else inputs.A
    h = torch.exp(dt * rates) * h + dt * B * x[..., None]
    y = (h * C).sum(-1)
    y = y if inputs.D is None else y + inputs.D * x
    return y if inputs.z is None else y * F.silu(inputs.z[entry]), h


def output_dtypes(inputs: Inputs) -> Mapping[str, torch.dtype]:
    """Return the dtypes of the outputs: those of x and of the state."""
    return {"out": inputs[0].x.dtype, "next_state": inputs[0].state.dtype}


def work(problem: StateUpdateProblem) -> Work:
    """Return four multiply-adds and an exponential for each number of the state, which is read and written."""
    channels = problem.heads * problem.dim
    states = problem.batch * channels * problem.state
    item = DTYPES[problem.dtype].itemsize
    traffic = 2 * states * item + channels * problem.state * max(4, item) + 4 * problem.batch * channels * item
    return Work(4 * states, states, traffic)


PLAIN = StateUpdateProblem(batch=3, dim=13, state=5)
OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"dtype": "float64"},
    {"dtype": "bfloat16"},
    {"dtype": "float16"},
    {"has_heads": True},
    {"has_heads": True, "heads": 4, "groups": 2},
    {"has_D": False, "has_z": False, "has_dt_bias": False},
    {"dt_softplus": False},
    {"has_state_batch_indices": True},
    {"log_A": True},
)
SIZES = ((1, 1, 1), (2, 3, 16), (1, 67, 3), (1, 16, 129), (5, 64, 16))  # (batch, dim, state)


def _corners() -> Iterator[StateUpdateProblem]:
    yield from (PLAIN.replace(**options) for options in OPTIONS)
    yield from (PLAIN.replace(batch=batch, dim=dim, state=state) for batch, dim, state in SIZES)


PROBES = (
    StateUpdateProblem(batch=3, dim=203, log_A=True),
    StateUpdateProblem(batch=2, dim=67, heads=6, groups=2, state=33, has_heads=True, dtype="bfloat16"),
)

op = Op(
    name="state_update",
    summary="one decoding step of the selective scan",
    problem=StateUpdateProblem,
    make_inputs=make_inputs,
    reference=reference,
    output_dtypes=output_dtypes,
    work=work,
    corners=tuple(_corners()),
    probes=PROBES,
)
