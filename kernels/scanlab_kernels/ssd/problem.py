"""Problems of state-space duality (Mamba-2), the tensors of its inputs and outputs, and a glossary of their names.

    x           (batch, length, heads, head_dim)    input
    dt          (batch, length, heads)              step size before bias, softplus and limits
    A           (heads,)                            decay rate, one for all states of a head
    B, C        (batch, length, groups, state)      input and output projections of heads/groups adjacent heads
    D           (heads,) or (heads, head_dim)       skip connection
    z           (batch, length, heads, head_dim)    gate
    dt_bias     (heads,)                            added to dt before the softplus
    seq_idx     (batch, length) int32               number of the sequence that a step belongs to
    h           (batch, heads, head_dim, state)     hidden state; initial_state and final_state are h before and after

    dt'[t] = clamp(softplus(dt[t] + dt_bias), *dt_limit)          decay[t] = exp(dt'[t] A), or 0 in a new sequence
    h[t]   = decay[t] h[t-1] + dt'[t] x[t] B[t]^T                 y[t]     = h[t] C[t] + D x[t]
    out[t] = y[t] silu(z[t])

A step is in a new sequence where seq_idx differs from the step before; the initial state belongs to sequence 0. In
the reference alone NaN stays in its sequence and in the steps from its own on: backends that multiply whole chunks, as
upstream does, multiply it by the zeros of other steps.

Source of the contract: state-spaces/mamba@e9594ce, mamba_ssm/ops/triton/ssd_combined.py, mamba_chunk_scan_combined; the
paper is Dao and Gu 2024, Transformers are SSMs, sections 5 and 6.
"""

from __future__ import annotations

import math
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

Limits = tuple[float, float]
Skip = Literal["none", "head", "channel"]

SIZES = ("batch", "length", "heads", "head_dim", "state", "groups")
SKIPS = ("none", "head", "channel")
NO_LIMIT = (0.0, math.inf)


class SsdInputs(NamedTuple):
    """The tensors of one call; shapes in the glossary of this module.

    x, B, C and z have the dtype of the problem; all others are float32, or float64 with float64.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    dt_bias: Tensor | None = None
    initial_state: Tensor | None = None
    seq_idx: Tensor | None = None


class SsdOutput(NamedTuple):
    """The output of a call.

    Attributes:
        out: (batch, length, heads, head_dim) in the dtype of x.
        final_state: (batch, heads, head_dim, state) in the dtype of A; the state after the last step.
    """

    out: Tensor
    final_state: Tensor


SsdFn = Callable[[SsdInputs], SsdOutput]


def check(inputs: SsdInputs) -> None:
    """Raise ProblemError unless the tensors of `inputs` fit together; sizes of x may be 0."""
    x, B = inputs.x, inputs.B
    if x.dim() != 4 or x.dtype not in DTYPE_NAMES:
        raise ProblemError(f"x is {spell(x)}: must be (batch, length, heads, head_dim) of {', '.join(DTYPES)}.")
    batch, length, heads, head_dim = x.shape
    groups, state = B.shape[-2:] if B.dim() == 4 else (1, 1)
    weight = weight_dtype(x.dtype)
    expected = {
        "dt": ((batch, length, heads), weight),
        "A": ((heads,), weight),
        "B": ((batch, length, groups, state), x.dtype),
        "C": ((batch, length, groups, state), x.dtype),
        "D": ((heads, head_dim) if inputs.D is not None and inputs.D.dim() == 2 else (heads,), weight),
        "z": (tuple(x.shape), x.dtype),
        "dt_bias": ((heads,), weight),
        "initial_state": ((batch, heads, head_dim, state), weight),
        "seq_idx": ((batch, length), torch.int32),
    }
    expect_like(inputs, x, expected)


@dataclass(frozen=True, kw_only=True)
class SsdProblem(Problem):
    """A problem of state-space duality: sizes, dtype, device, and the options of the recurrence that are used.

    Attributes:
        gradients: Whether outputs are differentiated too.
        skip: D is absent, one number for each head, or one for each channel of a head.
        dt_limit: Limits of the step size as "low:high"; empty if there are none.
    """

    op: ClassVar[str] = "ssd"
    sizes: ClassVar[tuple[str, ...]] = SIZES
    costless: ClassVar[tuple[str, ...]] = ("skip", "has_z", "has_dt_bias", "dt_limit")
    swept: ClassVar[str] = "length"

    batch: int
    length: int
    heads: int
    head_dim: int
    state: int
    groups: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    gradients: bool = False
    skip: Skip = "head"
    has_z: bool = False
    has_dt_bias: bool = True
    dt_softplus: bool = True
    dt_limit: str = ""
    has_initial_state: bool = False
    has_seq_idx: bool = False

    def __post_init__(self) -> None:
        expect_sizes(self)
        expect_one_of("skip", self.skip, SKIPS)
        if self.heads % self.groups:
            raise ProblemError(
                f"groups={self.groups} does not divide heads={self.heads}: a group is heads/groups adjacent heads."
            )
        low, high = self.limits
        if not low <= high:
            raise ProblemError(f"dt_limit={self.dt_limit!r}: the low limit must not exceed the high one.")

    @classmethod
    def of(
        cls, inputs: SsdInputs, *, dt_softplus: bool, dt_limit: Limits | str = NO_LIMIT, gradients: bool = False
    ) -> SsdProblem:
        """Return the problem that the tensors of `inputs` pose.

        Args:
            inputs: Tensors of one call.
            dt_softplus: Apply softplus to dt + dt_bias.
            dt_limit: The lowest and the highest step size, or the field of a problem.
            gradients: Whether outputs are differentiated too.

        Raises:
            ProblemError: The tensors do not fit together, or there is nothing to scan.
        """
        check(inputs)
        x = inputs.x
        if x.numel() == 0:
            raise ProblemError(f"x is {spell(x)}: every size must be at least 1.")
        batch, length, heads, head_dim = x.shape
        groups, state = inputs.B.shape[-2:]
        if not isinstance(dt_limit, str):
            dt_limit = "" if tuple(dt_limit) == NO_LIMIT else f"{dt_limit[0]!r}:{dt_limit[1]!r}"
        return cls(
            batch=batch,
            length=length,
            heads=heads,
            head_dim=head_dim,
            state=state,
            groups=groups,
            dtype=DTYPE_NAMES[x.dtype],
            device=x.device.type,
            gradients=gradients,
            skip="none" if inputs.D is None else "head" if inputs.D.dim() == 1 else "channel",
            has_z=inputs.z is not None,
            has_dt_bias=inputs.dt_bias is not None,
            dt_softplus=dt_softplus,
            dt_limit=dt_limit,
            has_initial_state=inputs.initial_state is not None,
            has_seq_idx=inputs.seq_idx is not None,
        )

    @property
    def limits(self) -> Limits:
        """The lowest and the highest step size."""
        if not self.dt_limit:
            return NO_LIMIT
        try:
            low, high = map(float, self.dt_limit.split(":"))
        except ValueError:
            raise ProblemError(f"dt_limit={self.dt_limit!r}: must be two numbers, such as 0.001:0.1.") from None
        return low, high

    @property
    def state_updates(self) -> int:
        """State updates of one forward pass: batch x length x heads x head_dim x state."""
        return self.batch * self.length * self.heads * self.head_dim * self.state

    def small(self) -> SsdProblem:
        """Return this problem, or one like it of fewer steps, heads and sequences where it is large."""
        if self.state_updates <= MAX_SMALL_UPDATES:
            return self
        per_group = max(1, min(self.heads, 4) // self.groups)
        return self.replace(batch=min(self.batch, 2), heads=per_group * self.groups, length=min(self.length, 100))

    @property
    def min_bytes(self) -> int:
        """Bytes that one forward pass must read and write at least, each tensor once."""
        item = DTYPES[self.dtype].itemsize
        weight = max(4, item)
        steps = self.batch * self.length
        channels = self.heads * self.head_dim
        projections = 2 * steps * self.groups * self.state
        return item * ((2 + self.has_z) * steps * channels + projections) + weight * (
            steps * self.heads + (1 + self.has_initial_state) * self.batch * channels * self.state
        )


def make_inputs(problem: SsdProblem, seed: int = 0) -> tuple[SsdInputs]:
    """Return reproducible random inputs for `problem` that make errors visible.

    The slowest heads decay by about exp(-0.01) and the fastest by exp(-3) a step, so that long and short memories
    both matter; limits on dt, where there are any, cut off steps at both ends; sequences end within chunks. The
    numbers depend on the seed and on the sizes of the problem, not on its dtype or device.
    """
    draws = Draws(seed)
    normal = draws.normal
    batch, length, heads, head_dim = problem.batch, problem.length, problem.heads, problem.head_dim
    dtype = DTYPES[problem.dtype]
    weight = weight_dtype(dtype)

    def put(values: Tensor, to: torch.dtype) -> Tensor:
        return values.to(device=problem.device, dtype=to)

    step = draws.step_sizes(heads) * torch.exp(0.5 * normal(batch, length, heads))
    bias = draws.uniform(-1.0, 0.5, heads)
    before_softplus = inverse_softplus(step) if problem.dt_softplus else step
    rates = draws.rates(heads)
    skip = normal(heads, head_dim)
    seq_idx = (torch.rand(batch, length, generator=draws.generator) < 4.0 / length).cumsum(1)
    projection = (batch, length, problem.groups, problem.state)
    return (
        SsdInputs(
            x=put(normal(batch, length, heads, head_dim), dtype),
            dt=put(before_softplus - bias if problem.has_dt_bias else before_softplus, weight),
            A=put(-rates, weight),
            B=put(normal(*projection), dtype),
            C=put(normal(*projection), dtype),
            D=None if problem.skip == "none" else put(skip[:, 0] if problem.skip == "head" else skip, weight),
            z=put(normal(batch, length, heads, head_dim), dtype) if problem.has_z else None,
            dt_bias=put(bias, weight) if problem.has_dt_bias else None,
            initial_state=(
                put(normal(batch, heads, head_dim, problem.state), weight) if problem.has_initial_state else None
            ),
            seq_idx=put(seq_idx, torch.int32) if problem.has_seq_idx else None,
        ),
    )
