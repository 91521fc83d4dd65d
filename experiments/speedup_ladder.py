"""The original study's ladder holds on this machine, and ours goes on where it ends.

Claimed over the reference loop, each step on top of the one before: two phases 2.2 times, their loop in C++ with
the torch API 2.8, both directions in parallel 3.5, data rearranged 4.0. Measured beside our backends in the same
interleaved rounds; each is compared with float64 before it is timed. Takes four minutes:

    python experiments/speedup_ladder.py
"""

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import common
from original_study import CLAIMS

from scanlab.bench.context import Candidate
from scanlab.bench.records import Trial
from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.report import figures, tables
from scanlab.report.formatting import times
from scanlab.report.select import placings

PROBLEM = ScanProblem(batch=1, dim=384, length=197, direction="bidirectional", layout="dim_last")
OUT = Path(__file__).parents[1] / "results" / "speedup_ladder"
# A comparison ends as soon as the fastest is known, which here is soon; several show how the slower ones spread.
COMPARISONS = 5
RACE_S = 45.0


def pooled(trials: Sequence[Trial]) -> Trial:
    """Return one trial with the blocks of all, each comparison counted as a process; or the trial that failed."""
    taken = [trial.measurement for trial in trials if trial.measurement is not None]
    if len(taken) < len(trials):
        return next(trial for trial in trials if trial.measurement is None)
    blocks = [dataclasses.replace(block, process=number) for number, each in enumerate(taken) for block in each.blocks]
    return dataclasses.replace(trials[-1], measurement=dataclasses.replace(taken[-1], blocks=tuple(blocks)))


def candidates_of(backend: Backend) -> list[Candidate]:
    """Return `backend` at its defaults, with each number of threads that it takes."""
    threads = next((choice.values for choice in backend.space.tunables if choice.name == "threads"), None)
    configs = [{"threads": count} for count in threads] if threads else [{}]
    return [Candidate(backend, backend.space.defaults | config) for config in configs]


def main() -> None:
    """Measure and write the page."""
    load = os.getloadavg()[0]
    day = time.strftime("%Y-%m-%d", time.gmtime())
    ours = registry.load_all()[0]
    claimed = {backend.name: CLAIMS.get(backend, math.nan) for backend in (*CLAIMS, *ours)}
    candidates = [each for backend in (*CLAIMS, *ours) for each in candidates_of(backend)]
    taken: dict[str, list[Trial]] = {}
    inputs = make_inputs(PROBLEM)
    for seed in range(COMPARISONS):
        found = common.compared(PROBLEM, inputs, "drawn, seed 0", candidates, RACE_S, OUT, seed)
        for trial in found.trials:
            taken.setdefault(trial.label, []).append(trial)
    trials = [pooled(mine) for mine in taken.values()]

    best = {placing.backend: placing.trial for placing in placings(trials)}
    caption = f"{this_machine().describe()}; measured on {day}, load before the run {load:.2f}; {PROBLEM.key}"
    figure = figures.bar_chart(
        [figures.bar(best[name])._replace(claim=claim) for name, claim in claimed.items()],
        "The ladder, claimed and measured",
        f"{COMPARISONS} comparisons, with 95 % intervals, at the best number of threads; diamonds: claimed.",
        caption,
        "speed-up over the reference loop on one thread (times)",
    )
    figures.save(figure, OUT, "ladder")
    frame = tables.speedup_table(trials)
    readable = tables.readable_speedups(frame)
    frame.insert(3, "claimed", frame["backend"].map(claimed))
    readable.insert(1, "claimed", frame["claimed"].map(times))
    (OUT / "ladder.csv").write_text(tables.csv(frame))
    (OUT / "ladder.md").write_text(
        f"# {__doc__}\n{caption}.\n\n![Speed-ups, claimed and measured](ladder.png)\n\n{tables.markdown(readable)}\n"
    )


if __name__ == "__main__":
    main()
