"""What serves where nothing was tuned: standings measured elsewhere, shipped with the package.

The file is made from recorded trials by `python experiments/heuristics.py`, and says from which, and on what machine.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanProblem
from scanlab.contract.space import Config

SHIPPED = Path(__file__).with_name("defaults.toml")
# What a kernel is chosen by, beside the sizes: two problems that differ in more of these are less alike.
TRAITS = ("direction", "gradients", "dtype", "layout", "complex_A", "constant_B", "constant_C")


@dataclass(frozen=True)
class Standing:
    """How a backend did: its best configuration, and how many times as fast as the reference loop on one thread."""

    backend: str
    config: Config
    speedup: float


@dataclass(frozen=True)
class Measured:
    """One problem on one machine: the standings of all backends, the fastest first."""

    problem: ScanProblem
    machine: str
    instruction_set: str
    cpus: int
    source: str
    standings: tuple[Standing, ...]

    @property
    def where(self) -> str:
        """The machine, and the results that say so."""
        return f"{self.machine} with {self.cpus} CPUs and {self.instruction_set} ({self.source})"


def most_alike(problem: ScanProblem) -> Iterator[Measured]:
    """What was measured that is like `problem` on this machine, the most alike first; none for another device.

    Likeness goes by traits of the problem, then by the instruction set, and last by the sizes and the number of
    CPUs, as the sum of absolute log ratios.
    """
    silicon = this_machine().silicon

    def unlikeness(each: Measured) -> tuple[int, bool, float]:
        traits = sum(getattr(each.problem, name) != getattr(problem, name) for name in TRAITS)
        apart = each.problem.distance(problem) + abs(math.log(each.cpus / silicon.usable_cpus))
        return traits, each.instruction_set != silicon.instruction_set, apart

    here = [each for each in read() if each.problem.device == problem.device]
    return iter(sorted(here, key=unlikeness))


@functools.cache
def read(path: Path = SHIPPED) -> tuple[Measured, ...]:
    """What the file holds."""
    return tuple(
        Measured(
            problem=ScanProblem.parse(each["problem"]),
            machine=each["machine"],
            instruction_set=each["instruction_set"],
            cpus=each["cpus"],
            source=each["source"],
            standings=tuple(
                Standing(standing["backend"], standing["config"], standing["speedup"]) for standing in each["standings"]
            ),
        )
        for each in tomllib.loads(path.read_text())["measured"]
    )
