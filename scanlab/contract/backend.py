"""Backends of an op: the facts that describe an implementation, and the function that builds it for a problem."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from scanlab.contract.base import Problem
from scanlab.contract.cpu import FOLLOW_TORCH
from scanlab.contract.problem import ScanOutput, ScanProblem
from scanlab.contract.space import Config, Space, Value
from scanlab.errors import ConfigError, RejectedError, UnavailableError

# An op built for one problem and one configuration: called with the inputs of the problem, NamedTuples of tensors, it
# returns a NamedTuple of tensors.
OpFn = Callable[..., Any]
# The same for a scan: called with one ScanInputs, or with two (forward, reverse) where the problem is bidirectional.
ScanFn = Callable[..., ScanOutput]


@dataclass(frozen=True)
class OpCapabilities:
    """The problems that a backend of any op can solve.

    Attributes:
        devices: Device types, such as "cpu".
        dtypes: Names of the dtypes of the inputs, such as "float32".
        gradients: Whether outputs can be differentiated.
    """

    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...] = ("float32",)
    gradients: bool = False

    def rejects(self, problem: Problem) -> str | None:
        """Return why a backend with these capabilities cannot solve `problem`, or None."""
        if problem.device not in self.devices:
            return f"device {problem.device}: it has {', '.join(self.devices)}"
        if problem.dtype not in self.dtypes:
            return f"dtype {problem.dtype}: it has {', '.join(self.dtypes)}"
        if problem.gradients and not self.gradients:
            return "it has no gradients"
        return None


@dataclass(frozen=True)
class Capabilities(OpCapabilities):
    """The problems that a backend of the scan can solve.

    Attributes:
        directions: Orders of time, of "forward", "reverse" and "bidirectional".
        groups: Whether B and C may have more than one group.
        constant_BC: Whether B and C may be constant over time.
        complex_A: Whether A may be complex.
        initial_state: Whether an initial state may be given.
        max_state: Largest size of the state.
    """

    directions: tuple[str, ...] = ("forward",)
    groups: bool = False
    constant_BC: bool = False
    complex_A: bool = False
    initial_state: bool = False
    max_state: int = 256

    def rejects(self, problem: Problem) -> str | None:
        """Return why a backend with these capabilities cannot solve `problem`, or None."""
        reason = super().rejects(problem)
        if reason is not None:
            return reason
        assert isinstance(problem, ScanProblem)
        if problem.direction not in self.directions:
            return f"direction {problem.direction}: it has {', '.join(self.directions)}"
        for asked_for, has, noun in (
            (problem.groups > 1, self.groups, f"{problem.groups} groups"),
            (problem.constant_B or problem.constant_C, self.constant_BC, "constant B or C"),
            (problem.complex_A, self.complex_A, "complex A"),
            (problem.has_initial_state, self.initial_state, "initial state"),
        ):
            if asked_for and not has:
                return f"it has no {noun}"
        if problem.state > self.max_state:
            return f"state {problem.state}: it takes at most {self.max_state}"
        return None


EVERY_DIRECTION = ("forward", "reverse", "bidirectional")
WHOLE_CONTRACT = Capabilities(
    dtypes=("float32", "float64", "bfloat16", "float16"),
    directions=EVERY_DIRECTION,
    gradients=True,
    groups=True,
    constant_BC=True,
    complex_A=True,
    initial_state=True,
)
# Backends made of torch ops run on a GPU too.
WHOLE_CONTRACT_ANYWHERE = replace(WHOLE_CONTRACT, devices=("cpu", "cuda"))


def always_available() -> str | None:
    """Return None: the default of a backend that needs nothing beyond torch."""
    return None


def nothing_to_note(problem: Problem, config: Config) -> str | None:
    """Return None: the default of a backend whose calls need no remark."""
    return None


@dataclass(frozen=True)
class Backend:
    """An implementation of an op.

    Attributes:
        name: One word; also the name of its entry point.
        summary: The difference from other backends, in a line.
        rank: Position in an order by simplicity, simplest first; a tie between backends goes to the lower one.
        sources: The files whose content decides its results and its speed.
        space: Tunables, and which combinations of their values are legal.
        capabilities: The problems that it solves.
        make: (problem, complete legal config) -> OpFn; compiling and allocating belong here.
        unavailable: () -> why it cannot run on this machine, with the cure, or None.
        explicit_only: Whether it serves only callers that name it, because it exists only to be verified.
        compiles_each: Whether each configuration compiles code of its own, so that the next build takes as long as the
            first one, and not only what is compiled once for all.
        op: The name of the op that it implements.
        note: (problem, complete legal config) -> what `scanlab.explain` adds about a call on this machine, if anything.
    """

    name: str
    summary: str
    rank: int
    sources: tuple[Path, ...]
    space: Space
    capabilities: OpCapabilities
    make: Callable[[Any, Config], OpFn]
    unavailable: Callable[[], str | None] = always_available
    explicit_only: bool = False
    compiles_each: bool = False
    op: str = "selective_scan"
    note: Callable[[Any, Config], str | None] = nothing_to_note

    def rejects(self, problem: Problem) -> str | None:
        """Return why this backend cannot solve `problem`, or None."""
        if problem.op != self.op:
            return f"a problem of {problem.op}: it implements {self.op}"
        return self.capabilities.rejects(problem)

    def build(self, problem: Problem, config: Config | None = None) -> OpFn:
        """Return the op for `problem` under `config`, whose missing tunables take their defaults.

        Raises:
            UnavailableError: The backend cannot run on this machine.
            RejectedError: The backend cannot solve `problem`.
            ConfigError: `config` is not legal for `problem`.
        """
        reason = self.unavailable()
        if reason is not None:
            raise UnavailableError(f"{self.name} cannot run here: {reason}")
        reason = self.rejects(problem)
        if reason is not None:
            raise RejectedError(f"{self.name} rejects {problem.key}: {reason}.")
        return self.make(problem, self.space.complete(config or {}, problem, self.name))

    @property
    def source_hash(self) -> str:
        """SHA-256 (first 16 hex digits) over the content of `sources`: when it changes, results are stale."""
        digest = hashlib.sha256()
        for path in self.sources:
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def files_of(*modules: ModuleType) -> tuple[Path, ...]:
    """Return the files of modules, for the `sources` of a backend that consists of them."""
    return tuple(Path(str(module.__file__)) for module in modules)


def restricted(backend: Backend, name: str, values: Sequence[Value], default: Value) -> Backend:
    """Return `backend` with its tunable `name` restricted to `values`."""
    tunables = tuple(
        replace(each, values=tuple(values), default=default, also_legal=()) if each.name == name else each
        for each in backend.space.tunables
    )
    return replace(backend, space=replace(backend.space, tunables=tunables))


def at_most(backend: Backend, threads: int) -> Backend:
    """Return `backend` with its tunable `threads`, where it has one, restricted to 1 to `threads` threads.

    Raises:
        ConfigError: It needs more threads than `threads`, or there are fewer.
    """
    tunable = next((each for each in backend.space.tunables if each.name == "threads"), None)
    if tunable is None:
        return backend
    counts = sorted(int(value) for value in tunable.legal if value != FOLLOW_TORCH)
    if threads not in counts:
        raise ConfigError(
            f"threads={threads}: {backend.name} runs on {counts[0]} to {counts[-1]} threads on this machine."
        )
    fewer = (value for value in tunable.values if FOLLOW_TORCH < int(value) < threads)
    return restricted(backend, "threads", (*fewer, threads), threads)
