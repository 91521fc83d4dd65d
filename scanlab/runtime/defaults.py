"""Measured defaults that ship with the package, for problems that nobody tuned on this machine.

`python experiments/heuristics.py` makes defaults.toml from recorded trials; it names the results and the machine.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scanlab.contract.machine import this_machine
from scanlab.contract.problem import Problem, ScanProblem
from scanlab.contract.space import Config

SHIPPED = Path(__file__).with_name("defaults.toml")
# Traits that decide which kernel is fastest, beside the sizes.
TRAITS = ("direction", "gradients", "dtype", "layout", "complex_A", "constant_B", "constant_C")


@dataclass(frozen=True)
class DefaultEntry:
    """Best configuration of a backend, and its speed-up over the reference loop on one thread."""

    backend: str
    config: Config
    speedup: float


@dataclass(frozen=True)
class MeasuredProblem:
    """One problem on one machine, and the backends measured there, the fastest first."""

    problem: ScanProblem
    machine: str
    instruction_set: str
    cpus: int
    source: str
    entries: tuple[DefaultEntry, ...]

    @property
    def where(self) -> str:
        """The machine and the results, in words."""
        return f"{self.machine} with {self.cpus} CPUs and {self.instruction_set} ({self.source})"


def most_similar(problem: Problem) -> Iterator[MeasuredProblem]:
    """Return the measured problems of the op and on the device of `problem`, the most similar first.

    Similarity goes by traits of the problem, then by the instruction set, and last by the sizes and the number of
    CPUs, as the sum of absolute log ratios.
    """
    silicon = this_machine().silicon

    def dissimilarity(each: MeasuredProblem) -> tuple[int, bool, float]:
        traits = sum(getattr(each.problem, name) != getattr(problem, name) for name in TRAITS)
        distance = each.problem.distance(problem) + abs(math.log(each.cpus / silicon.usable_cpus))
        return traits, each.instruction_set != silicon.instruction_set, distance

    asked = (problem.op, problem.device)
    measured = [each for each in read() if (each.problem.op, each.problem.device) == asked]
    return iter(sorted(measured, key=dissimilarity))


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
