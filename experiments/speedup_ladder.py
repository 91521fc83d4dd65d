"""The original study's ladder holds on this machine, and ours goes on where it ends.

Claimed over the reference loop, each step on top of the one before: two phases 2.2 times, their loop in C++ with
the torch API 2.8, both directions in parallel 3.5, data rearranged 4.0. Measured beside our backends in the same
interleaved rounds; each is held against float64 before it is timed. Takes some minutes on a quiet machine:

    python experiments/speedup_ladder.py
"""

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

from original_study import CLAIMS

from scanlab import registry
from scanlab.lab.machine import this_machine
from scanlab.lab.prove import Setting
from scanlab.lab.race import Entrant, race
from scanlab.lab.results import Results, Trial
from scanlab.problem import ScanProblem, make_inputs
from scanlab.report import figures, tables
from scanlab.report.evidence import anchor_of
from scanlab.report.units import times

PROBLEM = ScanProblem(batch=1, dim=384, length=197, direction="bidirectional", layout="dim_last")
OUT = Path(__file__).parents[1] / "results" / "speedup_ladder"
# A race ends as soon as the fastest is known, which here is soon; several show how the slower ones spread.
RACES = 6
RACE_S = 60.0


def pooled(trials: Sequence[Trial]) -> Trial:
    """One trial with the blocks of all, each race counted as a process; or the one that failed."""
    taken = [trial.measurement for trial in trials if trial.measurement is not None]
    if len(taken) < len(trials):
        return next(trial for trial in trials if trial.measurement is None)
    blocks = [dataclasses.replace(block, process=number) for number, each in enumerate(taken) for block in each.blocks]
    return dataclasses.replace(trials[-1], measurement=dataclasses.replace(taken[-1], blocks=tuple(blocks)))


def main() -> None:
    load = os.getloadavg()[0]
    day = time.strftime("%Y-%m-%d", time.gmtime())
    ours = [backend for backend in registry.load_all()[0] if backend.name != "reference"]
    entrants = [Entrant(backend, backend.space.defaults) for backend in (*CLAIMS, *ours)]
    taken: dict[str, list[Trial]] = {entrant.backend.name: [] for entrant in entrants}
    inputs = make_inputs(PROBLEM)
    for seed in range(RACES):
        setting = Setting.of(PROBLEM, inputs, "drawn, seed 0", seed)
        anchor = Entrant(registry.get("reference"), registry.get("reference").space.defaults)
        for trial in race(entrants, anchor, setting, Results(OUT), time.monotonic() + RACE_S).trials:
            taken[trial.backend].append(trial)
    trials = [pooled(mine) for mine in taken.values()]

    claimed = {entrant.backend.name: CLAIMS.get(entrant.backend, math.nan) for entrant in entrants}
    caption = f"{this_machine().describe()}; measured on {day}, load before the run {load:.2f}; {PROBLEM.key}"
    figure = figures.bar_chart(
        [figures.bar(trial)._replace(claim=claimed[trial.backend]) for trial in trials],
        "The ladder, claimed and measured",
        f"Bars: measured in {RACES} races, with 95 % intervals; diamonds: what the original study claims.",
        caption,
        f"speed-up over {anchor_of(trials[0])} (times)",
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
