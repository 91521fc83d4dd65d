"""Measured defaults that ship with the package, for problems that were not tuned on this machine.

`defaults.toml` is of scans, whose native kernel is the fastest on any CPU; `python experiments/heuristics.py` makes it
from recorded trials. Each `defaults_<silicon>.toml` is of the other ops on one kind of silicon and holds there alone;
`python experiments/products.py` makes them. Each names the results and the machine.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.machine import Silicon, this_machine
from scanlab.contract.problem import ScanProblem
from scanlab.contract.space import Config

SHIPPED = Path(__file__).with_name("defaults.toml")
# Traits that decide which kernel is fastest, beside the sizes.
TRAITS = ("direction", "gradients", "dtype", "layout", "complex_A", "constant_B", "constant_C")


@dataclass(frozen=True)
class DefaultEntry:
    """Best configuration of a backend; speed-up over the reference loop of a scan, or over torch's own op."""

    backend: str
    config: Config
    speedup: float


@dataclass(frozen=True)
class MeasuredProblem:
    """One problem on one machine, and the backends measured there, the fastest first."""

    problem: Problem
    machine: str
    instruction_set: str
    cpus: int
    source: str
    entries: tuple[DefaultEntry, ...]

    @functools.cached_property
    def family(self) -> Problem:
        """The family of the problem, which every decision looks at."""
        return self.problem.family

    @property
    def where(self) -> str:
        """The machine and the results, in words."""
        return f"{self.machine} with {self.cpus} CPUs and {self.instruction_set} ({self.source})"


def most_similar(problem: Problem) -> Iterator[MeasuredProblem]:
    """Return the measured problems of the op and on the device of `problem`, the most similar first.

    Similarity of scans goes by traits of the problem, then by the instruction set, and last by the sizes and the number
    of CPUs, as the sum of absolute log ratios. Those of other ops are of this kind of silicon and of the same family,
    and similarity goes by the sizes.
    """
    silicon = this_machine().silicon
    if problem.op != ScanProblem.op:
        family = problem.family
        same = [each for each in of_silicon(silicon) if each.family == family]
        return iter(sorted(same, key=lambda each: each.problem.distance(problem)))

    def dissimilarity(each: MeasuredProblem) -> tuple[int, bool, float]:
        traits = sum(getattr(each.problem, name) != getattr(problem, name) for name in TRAITS)
        distance = each.problem.distance(problem) + abs(math.log(each.cpus / silicon.usable_cpus))
        return traits, each.instruction_set != silicon.instruction_set, distance

    return iter(sorted((each for each in read() if each.problem.device == problem.device), key=dissimilarity))


def of_silicon(silicon: Silicon) -> tuple[MeasuredProblem, ...]:
    """Return the problems of other ops than the scan that were measured on this kind of silicon."""
    fitting = [each for each in _of_every_silicon() if each[0] == silicon.vendor and each[1] <= set(silicon.flags)]
    _, _, problems = max(fitting, key=lambda each: len(each[1]), default=("", frozenset(), ()))
    return problems


@functools.cache
def _of_every_silicon() -> tuple[tuple[str, frozenset[str], tuple[MeasuredProblem, ...]], ...]:
    """Return vendor, instruction sets and measured problems of each kind of silicon."""
    return tuple(map(read_silicon, sorted(SHIPPED.parent.glob("defaults_*.toml"))))


def clear() -> None:
    """Clear the cache, so that changed files are read again."""
    _of_every_silicon.cache_clear()
    read.cache_clear()


def read_silicon(path: Path) -> tuple[str, frozenset[str], tuple[MeasuredProblem, ...]]:
    """Return vendor, instruction sets and measured problems of the silicon that a file is of."""
    content = tomllib.loads(path.read_text())
    where = (content["machine"], content["instruction_set"], content["cpus"], content["source"])
    problems = tuple(
        MeasuredProblem(
            registry.parse_problem(text, op),
            *where,
            tuple(DefaultEntry(*_selected(selection), speedup) for selection, speedup in speedups.items()),
        )
        for op, measured in content["ops"].items()
        for text, speedups in measured.items()
    )
    return content["vendor"], frozenset(content["flags"]), problems


def _selected(selection: str) -> tuple[str, Config]:
    backend, config = registry.parse_selection(selection)
    return backend.name, backend.space.defaults | config


@functools.cache
def read(path: Path = SHIPPED) -> tuple[MeasuredProblem, ...]:
    """Return the measured problems in a file."""
    return tuple(
        MeasuredProblem(
            problem=ScanProblem.parse(each["problem"]),
            machine=each["machine"],
            instruction_set=each["instruction_set"],
            cpus=each["cpus"],
            source=each["source"],
            entries=tuple(
                DefaultEntry(entry["backend"], entry["config"], entry["speedup"]) for entry in each["entries"]
            ),
        )
        for each in tomllib.loads(path.read_text())["measured"]
    )
