"""`scanlab bench`: named backends and configurations side by side in one interleaved run."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from scanlab.bench.compare import race
from scanlab.bench.prove import Setting
from scanlab.bench.ranking import Race
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import Entrant
from scanlab.cli.console import AsJson, Exit, ImagePath, ProblemText, SuiteName, cases_of, notes, out, print_json
from scanlab.cli.duration import parse_duration
from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.contract.problem import ScanProblem
from scanlab.contract.space import Config


def bench(
    selections: Annotated[list[str], typer.Argument(metavar="BACKEND[:TUNABLE=VALUE,...]...", help="What runs.")],
    problem: ProblemText = None,
    suite: SuiteName = None,
    image: ImagePath = None,
    budget: Annotated[str, typer.Option(help="Time for each problem: 30s, 2m.")] = "30s",
    anchor: Annotated[str, typer.Option(help="What the others are compared with.")] = "reference:threads=1",
    results: Annotated[Path, typer.Option("--out", help="The folder that the trials are recorded in.")] = Path(
        "runs/bench"
    ),
    seed: Annotated[int, typer.Option(help="Of the drawn inputs and of the order of samples.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Prove the named backends, then time them in one interleaved run beside an anchor.

    Exits with 1 where one was wrong or crashed. Example: `scanlab bench native:threads=1 native:threads=2 chunked`
    """
    record = TrialStore(results)
    record.prepare()
    chosen = [registry.parse_selection(text) for text in selections]
    yardstick = registry.parse_selection(anchor)
    seconds = parse_duration(budget)
    races = []
    for case in cases_of(problem, suite, image):
        with notes.status(f"bench: {case.problem.key}") as status:
            setting = Setting.of(case.problem, case.inputs, case.label, seed)
            finished = race(
                [_entrant(*each, case.problem) for each in chosen],
                _entrant(*yardstick, case.problem),
                setting,
                record,
                time.monotonic() + seconds,
                on_round=lambda number: status.update(f"bench: round {number}"),
            )
        races.append(finished)
        if not as_json:
            out.print(f"[bold]{case.problem.key}[/]  ({case.label})")
            show_race(finished)
    if as_json:
        print_json([{"why": each.why, "trials": [trial.to_json() for trial in each.trials]} for each in races])
    if any(trial.state in ("wrong", "crashed") for each in races for trial in each.dropped):
        raise typer.Exit(Exit.CHECK_FAILED)


def _entrant(backend: Backend, config: Config, problem: ScanProblem) -> Entrant:
    return Entrant(backend, backend.space.complete(config, problem, backend.name))


def show_race(finished: Race) -> None:
    """The standings of a race as a table, its notices, and the sentence that names the winner."""
    table = Table("", "backend and configuration", "time", "speed-up", "95 %", "behind", "error", "memory", box=None)
    for place, standing in enumerate(finished.standings):
        measurement, verdict = standing.trial.measurement, standing.trial.verdict
        assert measurement is not None
        assert verdict is not None
        first, middle, third = measurement.quartiles_ms
        memory = "" if measurement.peak_bytes is None else f"{measurement.peak_bytes / 2**20:.1f} MiB"
        table.add_row(
            "[green]*[/]" if place == 0 else "=" if standing.tied else "",
            standing.trial.label,
            f"{middle:.3g} ms ({first:.3g} to {third:.3g})",
            f"{measurement.speedup:.2f}x",
            measurement.speedup_interval.spelled(".2f"),
            f"{math.exp(standing.behind):.2f}x",
            f"{verdict.worst:.0e}",
            memory,
        )
    out.print(table)
    for trial in finished.dropped:
        out.print(f"[red]{trial.label} {trial.state}:[/] {escape(trial.reason or '')}")
    for notice in finished.notices:
        notes.print(f"[yellow]note:[/] {escape(notice)}")
    floor = f"{math.expm1(finished.noise_floor):.1%}" if math.isfinite(finished.noise_floor) else "unknown"
    out.print(f"{escape(finished.why)} Noise floor {floor}; rounds: {finished.rounds}.")
