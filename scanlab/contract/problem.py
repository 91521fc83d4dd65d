"""Problems of the scan, the tensors of its inputs and outputs, and a glossary of their names.

    u           (batch, dim, length)            input
    delta       (batch, dim, length)            step size before bias and softplus
    A           (dim, state)                    decay rates; real (negative in Mamba) or complex
    B, C        (batch, state, length)          input and output projections, varying over time; or
                (batch, groups, state, length)  the same, one per group of dim/groups adjacent channels; or
                (dim, state)                    constant over time
    D           (dim,)                          skip connection
    z           (batch, dim, length)            gate
    delta_bias  (dim,)                          added to delta before the softplus
    h           (batch, dim, state)             hidden state; initial_state and last_state are h before and after

    delta'[t] = softplus(delta[t] + delta_bias)                  decay[t] = exp(delta'[t] A)
    h[t]      = decay[t] h[t-1] + drive[t]                       drive[t] = delta'[t] B[t] u[t]
    y[t]      = <C[t], h[t]> + D u[t]                            out[t]   = y[t] silu(z[t])

With a complex A, a varying B or C is a real tensor whose last axis holds 2 length interleaved values
(real, imaginary), a constant one is complex, and <C, h> is 2 Re(sum C h).

Source of the contract: state-spaces/mamba@e9594ce, mamba_ssm/ops/selective_scan_interface.py,
selective_scan_ref; the paper is Gu and Dao 2023, Mamba, algorithm 2.
"""

from __future__ import annotations

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
    expect_strided,
    inverse_softplus,
    weight_dtype,
)
from scanlab.errors import ProblemError

Direction = Literal["forward", "reverse", "bidirectional"]
Layout = Literal["length_last", "dim_last"]

DIRECTIONS: tuple[Direction, ...] = ("forward", "reverse", "bidirectional")
LAYOUTS: tuple[Layout, ...] = ("length_last", "dim_last")
SIZES = ("batch", "dim", "length", "state", "groups")


class ScanInputs(NamedTuple):
    """The tensors of one scan in one direction; shapes in the glossary of this module."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None
    initial_state: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are not None, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def with_tensors(self, **tensors: Tensor) -> ScanInputs:
        """Return these inputs with some tensors replaced."""
        return self._replace(**tensors)


class ScanOutput(NamedTuple):
    """The output of a scan.

    Attributes:
        out: (batch, dim, length) in the dtype of u; the sum of both directions where there are two.
        last_state: (batch, dim, state) in the dtype of A; (2, batch, dim, state) where there are two directions. It is
            the state after the last step in the order of the scan: in reverse, that step is time 0.
    """

    out: Tensor
    last_state: Tensor


@dataclass(frozen=True, kw_only=True)
class ScanProblem(Problem):
    """A problem of the scan: sizes, dtype, device, direction, and the options of the recurrence that are used.

    Attributes:
        direction: The order of time. A bidirectional problem has two sets of inputs, the second of which is scanned
            from the last time step to the first, and one output, their sum.
        gradients: Whether outputs are differentiated too.
        layout: The axis of u, delta, z and out whose stride is 1; the shapes are (batch, dim, length) in either case.
    """

    op: ClassVar[str] = "selective_scan"
    sizes: ClassVar[tuple[str, ...]] = SIZES
    costless: ClassVar[tuple[str, ...]] = ("has_D", "has_z", "has_delta_bias")
    always_named: ClassVar[tuple[str, ...]] = ("state",)
    swept: ClassVar[str] = "length"

    batch: int
    dim: int
    length: int
    state: int = 16
    groups: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    direction: Direction = "forward"
    gradients: bool = False
    has_D: bool = True
    has_z: bool = True
    has_delta_bias: bool = True
    delta_softplus: bool = True
    has_initial_state: bool = False
    constant_B: bool = False
    constant_C: bool = False
    complex_A: bool = False
    layout: Layout = "length_last"

    def __post_init__(self) -> None:
        expect_sizes(self)
        expect_one_of("direction", self.direction, DIRECTIONS)
        expect_one_of("layout", self.layout, LAYOUTS)
        if self.dim % self.groups:
            raise ProblemError(
                f"groups={self.groups} does not divide dim={self.dim}: a group is dim/groups adjacent channels."
            )
        if self.groups > 1 and self.constant_B and self.constant_C:
            raise ProblemError(f"groups={self.groups} with constant B and C: only varying B and C have groups.")

    @classmethod
    def of(
        cls, *inputs: ScanInputs, delta_softplus: bool, direction: Direction, gradients: bool = False
    ) -> ScanProblem:
        """Return the problem that the tensors of `inputs` pose.

        Raises:
            ProblemError: The tensors do not fit together.
        """
        if len(inputs) != (2 if direction == "bidirectional" else 1):
            raise ProblemError(
                f"direction {direction} with {len(inputs)} sets of inputs: bidirectional takes two, others one."
            )
        problems = [_problem_of(each, delta_softplus, direction, gradients) for each in inputs]
        if len(problems) == 2 and problems[0] != problems[1].replace(layout=problems[0].layout):
            raise ProblemError(
                f"the directions pose different problems, {problems[0].key} and {problems[1].key}: they must be alike."
            )
        return problems[0]

    @property
    def directions(self) -> int:
        """Number of input sets: 2 where bidirectional, else 1."""
        return 2 if self.direction == "bidirectional" else 1

    @property
    def state_updates(self) -> int:
        """State updates of one forward pass: batch x dim x length x state x directions."""
        return self.batch * self.dim * self.length * self.state * self.directions

    def small(self) -> ScanProblem:
        """Return this problem, or one like it of fewer steps, channels and sequences where it is large."""
        if self.state_updates <= MAX_SMALL_UPDATES:
            return self
        per_group = max(1, min(self.dim, 32) // self.groups)
        return self.replace(batch=min(self.batch, 2), dim=per_group * self.groups, length=min(self.length, 100))

    @property
    def min_bytes(self) -> int:
        """Bytes that one forward pass must read and write at least, each tensor once."""
        item = DTYPES[self.dtype].itemsize
        weight = max(4, item) * (2 if self.complex_A else 1)
        channels = self.batch * self.dim * self.length
        varying = self.batch * self.groups * self.state * self.length * item * (2 if self.complex_A else 1)
        constant = self.dim * self.state * weight
        per_direction = (2 + self.has_z) * channels * item + constant
        per_direction += sum(constant if fixed else varying for fixed in (self.constant_B, self.constant_C))
        per_direction += (self.has_D + self.has_delta_bias) * self.dim * max(4, item)
        return per_direction * self.directions + channels * item


def _expect(condition: bool, name: str, tensor: Tensor, holds: str) -> None:
    if not condition:
        raise ProblemError(
            f"{name} is {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}: must be {holds}."
        )


def check(inputs: ScanInputs) -> int:
    """Return the number of groups of B and C; a scan of these may have a batch, dim or length of 0.

    Raises:
        ProblemError: The tensors do not fit together.
    """
    u, A, B, C = inputs.u, inputs.A, inputs.B, inputs.C
    _expect(u.dim() == 3 and u.dtype in DTYPE_NAMES, "u", u, f"(batch, dim, length) of {', '.join(DTYPES)}")
    batch, dim, length = u.shape
    item = DTYPE_NAMES[u.dtype]
    for name in ("delta", "z"):
        tensor = getattr(inputs, name)
        if tensor is not None:
            _expect(
                tensor.shape == u.shape and tensor.dtype == u.dtype, name, tensor, f"like u, {item} {tuple(u.shape)}"
            )
    weight = weight_dtype(u.dtype)
    complex_A = A.is_complex()
    kind = weight.to_complex() if complex_A else weight
    kind_name = str(kind).removeprefix("torch.")
    _expect(A.dim() == 2 and A.shape[0] == dim and A.dtype == kind, "A", A, f"{kind_name} ({dim}, state)")
    state = A.shape[1]
    for name in ("D", "delta_bias"):
        tensor = getattr(inputs, name)
        if tensor is not None:
            fits = tensor.shape == (dim,) and tensor.dtype == weight
            _expect(fits, name, tensor, f"{DTYPE_NAMES[weight]} ({dim},)")
    groups = {}
    columns = 2 * length if complex_A else length
    varying = f"varying, {item} ({batch}, {state}, {columns}) or ({batch}, groups, {state}, {columns})"
    for name, tensor in (("B", B), ("C", C)):
        if tensor.dim() == 2:
            fits = tensor.shape == (dim, state) and tensor.dtype == kind
        else:
            groups[name] = tensor.shape[1] if tensor.dim() == 4 else 1
            ungrouped = (tensor.shape[0], *tensor.shape[-2:])
            fits = tensor.dim() in (3, 4) and ungrouped == (batch, state, columns) and tensor.dtype == u.dtype
        _expect(fits, name, tensor, f"constant, {kind_name} ({dim}, {state}), or {varying}")
    if len(set(groups.values())) > 1:
        raise ProblemError(f"B has {groups['B']} groups and C has {groups['C']}: they must have as many groups.")
    h = inputs.initial_state
    if h is not None:
        fits = h.shape == (batch, dim, state) and h.dtype == kind
        _expect(fits, "initial_state", h, f"{kind_name} ({batch}, {dim}, {state})")
    expect_strided(inputs)
    for name, tensor in inputs.tensors().items():
        if tensor.device != u.device:
            raise ProblemError(f"{name} is on {tensor.device} and u on {u.device}: all tensors must be on one device.")
    return next(iter(groups.values()), 1)


def _problem_of(inputs: ScanInputs, delta_softplus: bool, direction: Direction, gradients: bool) -> ScanProblem:
    groups = check(inputs)
    u, A = inputs.u, inputs.A
    batch, dim, length = u.shape
    return ScanProblem(
        batch=batch,
        dim=dim,
        length=length,
        state=A.shape[1],
        groups=groups,
        dtype=DTYPE_NAMES[u.dtype],
        device=u.device.type,
        direction=direction,
        gradients=gradients,
        has_D=inputs.D is not None,
        has_z=inputs.z is not None,
        has_delta_bias=inputs.delta_bias is not None,
        delta_softplus=delta_softplus,
        has_initial_state=inputs.initial_state is not None,
        constant_B=inputs.B.dim() == 2,
        constant_C=inputs.C.dim() == 2,
        complex_A=A.is_complex(),
        layout="dim_last" if dim > 1 and u.stride(1) == 1 else "length_last",
    )


def make_inputs(problem: ScanProblem, seed: int = 0) -> tuple[ScanInputs, ...]:
    """Return reproducible random inputs for `problem`, one set for each direction, that make errors visible.

    The slowest states decay by about exp(-0.01) and the fastest by exp(-3) a step, so that long and short memories
    both matter; A is not made of integers; step sizes differ by channel and by time. The numbers depend on the seed
    and on the sizes of the problem, not on its dtype, device or layout.
    """
    draws = Draws(seed)
    return tuple(_draw(problem, draws) for _ in range(problem.directions))


def _draw(problem: ScanProblem, draws: Draws) -> ScanInputs:
    batch, dim, length, state = problem.batch, problem.dim, problem.length, problem.state
    dtype = DTYPES[problem.dtype]
    weight = weight_dtype(dtype)
    normal = draws.normal

    def channels(values: Tensor) -> Tensor:
        values = values.to(device=problem.device, dtype=dtype)
        return values.mT.contiguous().mT if problem.layout == "dim_last" else values

    def constant(values: Tensor) -> Tensor:
        kind = weight.to_complex() if values.is_complex() else weight
        return values.to(device=problem.device, dtype=kind)

    def normal_kind(*shape: int) -> Tensor:
        return torch.complex(normal(*shape), normal(*shape)) if problem.complex_A else normal(*shape)

    def projection(fixed: bool) -> Tensor:
        if fixed:
            return constant(normal_kind(dim, state))
        columns = 2 * length if problem.complex_A else length
        values = normal(batch, problem.groups, state, columns).to(device=problem.device, dtype=dtype)
        return values if problem.groups > 1 else values[:, 0]

    step = draws.step_sizes(dim, 1) * torch.exp(0.5 * normal(batch, dim, length))
    bias = draws.uniform(-1.0, 0.5, dim)
    before_softplus = inverse_softplus(step) if problem.delta_softplus else step
    delta = before_softplus - bias[:, None] if problem.has_delta_bias else before_softplus
    rates = draws.rates(dim, state)
    A = torch.complex(-rates, 3.0 * normal(dim, state)) if problem.complex_A else -rates
    initial = normal_kind(batch, dim, state)
    return ScanInputs(
        u=channels(normal(batch, dim, length)),
        delta=channels(delta),
        A=constant(A),
        B=projection(problem.constant_B),
        C=projection(problem.constant_C),
        D=constant(normal(dim)) if problem.has_D else None,
        z=channels(normal(batch, dim, length)) if problem.has_z else None,
        delta_bias=constant(bias) if problem.has_delta_bias else None,
        initial_state=constant(initial) if problem.has_initial_state else None,
    )
