"""Candidates, and the context that the trials of one run share: problem, inputs, reference outputs, machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from scanlab.bench.records import label_of
from scanlab.bench.roofline import Roofline, roofline_here
from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.contract.base import Problem
from scanlab.contract.cpu import thread_count
from scanlab.contract.machine import Machine, this_machine
from scanlab.contract.op import Inputs
from scanlab.contract.space import Config, Value, config_key
from scanlab.contract.verify import ReferenceOutputs, reference_outputs
from scanlab.errors import UnknownBackendError


@dataclass(frozen=True, eq=False)
class Candidate:
    """A backend and a complete configuration; equal to another of the same names and values.

    Another process receives the name of the backend and finds the backend by it, see `is_installed`.
    """

    backend: Backend
    config: Mapping[str, Value]

    @classmethod
    def of(cls, backend: Backend, config: Config, problem: Problem) -> Candidate:
        """Return the candidate whose unnamed tunables have their defaults.

        Raises:
            ConfigError: The configuration is not legal for `problem`.
        """
        return cls(backend, backend.space.complete(config, problem, backend.name))

    @cached_property
    def key(self) -> tuple[str, str]:
        """Name of the backend and canonical text of the configuration."""
        return self.backend.name, config_key(self.config)

    @property
    def label(self) -> str:
        """Backend and configuration in one line."""
        return label_of(self.backend.name, self.config)

    @property
    def threads(self) -> int:
        """Threads that its calls use."""
        return thread_count(self.config)

    @property
    def is_default(self) -> bool:
        """True if every tunable has its default."""
        return dict(self.config) == self.backend.space.defaults

    @property
    def is_installed(self) -> bool:
        """True if another process finds this backend by its name, though perhaps with a wider space."""
        try:
            return registry.get(self.backend.name).make is self.backend.make
        except UnknownBackendError:
            return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Candidate) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self) -> tuple[object, ...]:
        return _by_name, (self.backend.name, dict(self.config))


def _by_name(name: str, config: dict[str, Value]) -> Candidate:
    return Candidate(registry.get(name), config)


@dataclass(frozen=True)
class BenchmarkContext:
    """Problem, inputs and reference outputs that the trials of one run share.

    Attributes:
        inputs_label: Where the inputs came from.
        references: Reference outputs for the inputs themselves, and for a draw of hard ones (seed + 1).
    """

    problem: Problem
    inputs_label: str
    seed: int
    machine: Machine
    references: tuple[ReferenceOutputs, ...]

    @classmethod
    def of(cls, problem: Problem, inputs: Inputs, inputs_label: str, seed: int) -> BenchmarkContext:
        """Return the context for `inputs`; computes the float64 reference, which may take long."""
        hard = registry.op(problem.op).make_inputs(problem, seed + 1)
        references = tuple(reference_outputs(problem, each) for each in (inputs, hard))
        return cls(problem, inputs_label, seed, this_machine(), references)

    @property
    def inputs(self) -> Inputs:
        """The inputs that candidates are timed on."""
        return self.references[0].inputs

    @property
    def roofline(self) -> Roofline | None:
        """Limits of the CPU, as well as they are known by now; None for a problem on another device."""
        return roofline_here() if self.problem.device == "cpu" else None

    def with_fresh_inputs(self) -> BenchmarkContext:
        """Return the context for inputs of the same kind that no trial of this one has seen; the hard ones stay."""
        op, seed = registry.op(self.problem.op), self.seed + 2
        fresh = (
            op.make_inputs(self.problem, seed)
            if op.fresh_inputs is None
            else op.fresh_inputs(self.problem, self.inputs, seed)
        )
        return replace(self, seed=seed, references=(reference_outputs(self.problem, fresh), *self.references[1:]))

    def attainable_ms(self, candidate: Candidate) -> float | None:
        """Return the time of a kernel that wastes nothing on the candidate's threads.

        None without a roofline, and with one that other work disturbed: the time would be too long.
        """
        roofline = self.roofline
        is_known = roofline is not None and roofline.disturbed is None
        return 1e3 * roofline.attainable_s(self.problem, candidate.threads) if is_known and roofline else None
