"""The shipped defaults rest on measurements: every backend beside the reference loop, on typical problems.

Takes the best configuration of each backend from recorded trials and writes scanlab/runtime/defaults.toml, which serves
problems that were not tuned. Run it on each kind of machine, after tuning the typical problems there, and commit what
it writes; the raw trials stay on the machine:

    scanlab tune --suite experiments/heuristics.toml:typical --budget 15m --out results/heuristics
    python experiments/heuristics.py results/heuristics results/vim-tiny
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import common
import pandas as pd
import typer

from scanlab.bench.ranking import WORTH_FOR_SIMPLICITY
from scanlab.bench.records import Trial
from scanlab.bench.store import TrialStore
from scanlab.contract import registry
from scanlab.contract.space import Value
from scanlab.report import tables
from scanlab.report.formatting import times
from scanlab.runtime.defaults import SHIPPED, DefaultEntry, MeasuredProblem, read

ROOT = Path(__file__).parents[1]
PHASES = ("search", "comparison", "holdout")  # a later one weighs more: it was measured longer, beside fewer others
# It compiles for every new shape, unexpectedly for a caller without a tuning.
LEFT_OUT = ("compiled",)


def entries_of(trials: Iterable[Trial]) -> tuple[DefaultEntry, ...]:
    """Return the best trial of each installed backend in the last phase that it reached, the fastest first.

    Trials with another baseline than the reference loop are left out: their speed-ups are not comparable.
    """
    installed = set(registry.names()) - set(LEFT_OUT)
    timed: dict[str, list[Trial]] = {}
    for trial in trials:
        against_reference = trial.reference_label.startswith("reference")
        if trial.state == "ok" and against_reference and trial.phase in PHASES and trial.backend in installed:
            timed.setdefault(trial.backend, []).append(trial)
    best = {name: best_of(each) for name, each in timed.items()}
    made = [DefaultEntry(name, carried_over(trial), speedup(trial)) for name, trial in best.items()]
    return tuple(sorted(made, key=lambda entry: entry.speedup, reverse=True))


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the fastest trial of one backend in the last phase that it reached.

    One that departs less from the defaults and is about as fast goes before it: noise alone would choose otherwise.
    """
    phase = max((trial.phase for trial in trials), key=PHASES.index)
    last = [trial for trial in trials if trial.phase == phase]
    close = [trial for trial in last if speedup(trial) >= math.exp(-WORTH_FOR_SIMPLICITY) * max(map(speedup, last))]
    space = registry.get(last[0].backend).space
    return min(close, key=lambda trial: (space.num_nondefault(trial.config), -speedup(trial)))


def speedup(trial: Trial) -> float:
    """Return the speed-up over the reference loop on one thread."""
    assert trial.measurement is not None
    return trial.measurement.speedup


def carried_over(trial: Trial) -> Mapping[str, Value]:
    """Return the configuration without the number of threads where it uses all CPUs of the machine."""
    every = trial.machine.silicon.usable_cpus
    return {name: value for name, value in trial.config.items() if (name, value) != ("threads", every)}


def measured(folder: Path) -> list[MeasuredProblem]:
    """Return one result for each machine and problem in a folder of results."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in TrialStore(folder).load().trials:
        groups.setdefault((trial.machine.silicon_id, trial.problem.key), []).append(trial)
    found = []
    for trials in groups.values():
        silicon, problem = trials[0].machine.silicon, trials[0].problem
        entries = entries_of(each for each in trials if each.problem == problem)
        source = folder.resolve().relative_to(ROOT).as_posix()
        if len(entries) > 1:  # a problem that one backend alone was tried on ranks nothing
            vectors = silicon.instruction_set
            found.append(MeasuredProblem(problem, silicon.model_name, vectors, silicon.usable_cpus, source, entries))
        else:
            print(f"{source}: {problem.key} is left out: {len(entries)} backends were timed beside the reference loop")
    return found


def text_of(each: MeasuredProblem) -> str:
    """Return one table of the defaults file."""
    entries = [
        f"    {{ backend = {json.dumps(one.backend)}, speedup = {one.speedup:.3g},"
        f" config = {{ {', '.join(f'{name} = {json.dumps(value)}' for name, value in one.config.items())} }} }},"
        for one in each.entries
    ]
    facts = [f"{name} = {json.dumps(getattr(each, name))}" for name in ("machine", "instruction_set", "cpus", "source")]
    return "\n".join(("[[measured]]", f'problem = "{each.problem.key}"', *facts, "entries = [", *entries, "]\n"))


def main(
    folders: Annotated[list[Path], typer.Argument(help="Folders of results.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = SHIPPED,
    page: Annotated[Path, typer.Option(help="Folder of the page that shows them.")] = common.RESULTS / "heuristics",
) -> None:
    """Write the defaults that the folders hold, beside those of other machines that the file has."""
    new = {(each.machine, each.cpus, each.problem): each for folder in folders for each in measured(folder)}
    old = {(each.machine, each.cpus, each.problem): each for each in (read(out) if out.exists() else ())}
    header = "# The fastest backends where measured: made from recorded trials by `python experiments/heuristics.py`.\n"
    out.write_text("\n".join((header, *map(text_of, (old | new).values()))))
    print(f"wrote {out}: {len(old | new)} problems, {len(new)} of them from {', '.join(map(str, folders))}")
    write_table(list((old | new).values()), page)


def write_table(every: Sequence[MeasuredProblem], out: Path) -> None:
    """Write the shipped defaults as a page and a CSV file: a row for each problem and backend."""
    rows = [
        {
            "problem": each.problem.key,
            "machine": f"{each.machine}, {each.cpus} CPUs, {each.instruction_set}",
            "backend": entry.backend,
            "configuration": tables.config_text(entry.config) or "defaults",
            "speedup": entry.speedup,
        }
        for each in every
        for entry in each.entries
    ]
    frame = pd.DataFrame(rows)
    text = frame.assign(speedup=frame["speedup"].map(times))
    caption = "Speed-up over the reference loop on one thread, the best configuration of each backend"
    sections = {str(key): mine.drop(columns="problem") for key, mine in text.groupby("problem", sort=False)}
    common.write_page(out, __doc__, caption, {}, sections, frame)


if __name__ == "__main__":
    typer.run(main)
