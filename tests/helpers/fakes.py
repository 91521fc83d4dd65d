"""Backends made up for the tests of the lab: the reference scan, with something added."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from scanlab.contract import registry
from scanlab.contract.backend import Backend, ScanFn
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config, Space, Tunable

TINY = ScanProblem(batch=1, dim=4, length=6, state=2)


def fake(
    name: str,
    around: Callable[[ScanFn, Config], ScanFn],
    choices: tuple[Tunable, ...] = (),
    rank: int = 5,
    source: Path = Path(__file__),
    forbids: Callable[[Config, ScanProblem], str | None] = lambda config, problem: None,
) -> Backend:
    """A backend whose scan is what `around` makes of the reference scan."""
    reference = registry.get("reference")

    def make(problem: ScanProblem, config: Config) -> ScanFn:
        return around(reference.build(problem, {"threads": 1}), config)

    space = Space(choices, forbids)
    return Backend(name, "made up", rank, (source,), space, reference.capabilities, make)


def sleepy(name: str = "sleepy", delays_ms: tuple[float, ...] = (0.0, 1.0, 3.0), rank: int = 5) -> Backend:
    """Right, and slower by its tunable `delay_ms`; the default is the slowest."""

    def around(scan: ScanFn, config: Config) -> ScanFn:
        def slow(*inputs: ScanInputs) -> ScanOutput:
            time.sleep(float(config["delay_ms"]) / 1e3)
            return scan(*inputs)

        return slow

    return fake(name, around, (Tunable("delay_ms", delays_ms, delays_ms[-1]),), rank)


def wrong(when: float = 2.0) -> Backend:
    """Wrong where its tunable `scale` is `when`, right where it is 1."""

    def around(scan: ScanFn, config: Config) -> ScanFn:
        def scaled(*inputs: ScanInputs) -> ScanOutput:
            out, last_state = scan(*inputs)
            return ScanOutput(out * float(config["scale"]), last_state)

        return scaled

    return fake("wrong", around, (Tunable("scale", (1.0, when), 1.0),))


def crashing(at_call: int = 0) -> Backend:
    """Raises at the given call, counted from 0; before that it is right."""

    def around(scan: ScanFn, config: Config) -> ScanFn:
        calls = iter(range(10**9))

        def crash(*inputs: ScanInputs) -> ScanOutput:
            if next(calls) >= at_call:
                raise RuntimeError("the kernel fell over")
            return scan(*inputs)

        return crash

    return fake("crashing", around)


def lethal() -> Backend:
    """Kills its process where its tunable `kill` is true; the default is not to."""

    def around(scan: ScanFn, config: Config) -> ScanFn:
        if config["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return scan

    return fake("lethal", around, (Tunable("kill", (False, True), False),))
