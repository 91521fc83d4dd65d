"""`scanlab bench`: named backends and configurations side by side in one interleaved run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from scanlab.bench.clock import MeasuringClock, QuietWait
from scanlab.bench.compare import Comparer
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.process_worker import open_worker
from scanlab.bench.ranking import Comparison
from scanlab.bench.records import Trial, spelled_state
from scanlab.bench.samples import Measurement
from scanlab.bench.store import TrialStore
from scanlab.cli.console import (
    AsJson,
    Exit,
    ImagePath,
    ObjectiveName,
    OpName,
    ProblemTexts,
    Raw,
    Seed,
    SuiteName,
    cases_of,
    notes,
    op_of,
    out,
    plain_table,
    print_json,
    refuse_repeated,
)
from scanlab.cli.duration import parse_duration
from scanlab.contract import registry


def bench(
    selections: Annotated[list[str], typer.Argument(metavar="BACKEND[:TUNABLE=VALUE,...]...", help="Configurations.")],
    op: OpName = None,
    problem: ProblemTexts = None,
    suite: SuiteName = None,
    image: ImagePath = None,
    objective: ObjectiveName = "median",
    budget: Annotated[str, typer.Option(help="Time for each problem: 30s, 2m.")] = "30s",
    baseline: Annotated[
        str | None, typer.Option(help="Baseline that the others are timed beside; the fastest of them by default.")
    ] = None,
    results: Annotated[Path, typer.Option("--out", help="The folder that the trials are recorded in.")] = Path(
        "runs/bench"
    ),
    seed: Seed = 0,
    as_json: AsJson = False,
    raw: Raw = False,
) -> None:
    """Verify the named backends, then time them in interleaved rounds beside a baseline, and rank them.

    Exits with 1 where one was wrong or crashed, with 3 where too little could be measured to name a winner.

    Example:
        scanlab bench native:threads=1 native:threads=2 chunked
    """
    refuse_repeated(selections)
    seconds = parse_duration(budget)
    store = TrialStore(results)
    store.prepare()
    chosen = [registry.parse_selection(text) for text in selections]
    beside = None if baseline is None else registry.parse_selection(baseline)
    found = []
    asked = op_of(op, (backend for backend, _ in (*chosen, *([beside] if beside else []))))
    for case in cases_of(problem, suite, image, asked):
        candidates = [Candidate.of(*each, case.problem) for each in chosen]
        given = None if beside is None else Candidate.of(*beside, case.problem)
        with notes.status(f"bench: {case.problem.key}") as status:
            context = BenchmarkContext.of(case.problem, case.inputs, case.label, seed)
            worker, _ = open_worker(context, [each.backend for each in candidates])
            try:
                clock = MeasuringClock()
                wait = QuietWait(
                    seconds, clock, worker.disturbance, lambda reason: status.update(f"bench: waiting, {reason}")
                )
                comparer = Comparer(
                    context,
                    worker,
                    store,
                    clock,
                    wait,
                    on_round=lambda number: status.update(f"bench: round {number}"),
                    objective=objective,
                )
                with clock.paused():
                    for each in candidates:
                        status.update(f"bench: building {each.label}")
                        worker.prepare(each)
                compared = comparer.compare(candidates, seconds, baseline=given)
            finally:
                worker.close()
        found.append(compared)
        if not as_json:
            out.print(f"[bold]{case.problem.key}[/]  ({case.label})")
            show_comparison(compared)
            out.print(f"{escape(compared.why)} {noise_line(compared)}")
    if as_json:
        print_json([{"why": each.why, "trials": [trial_json(trial, raw) for trial in each.trials]} for each in found])
    if any(trial.state in ("wrong", "crashed") for each in found for trial in each.dropped):
        raise typer.Exit(Exit.CHECK_FAILED)
    if any(each.winner is None for each in found):
        raise typer.Exit(Exit.CANNOT_RUN)


def show_comparison(compared: Comparison) -> None:
    """Print the ranking as a table, the candidates without a time, and the notices."""
    table = plain_table("", "backend and configuration", "time", "speed-up", "95 %", "behind", "error", "memory")
    for each in compared.ranking:
        measurement, verdict = each.trial.measurement, each.trial.verdict
        assert measurement is not None
        assert verdict is not None
        first, middle, third = measurement.quartiles_ms
        memory = "" if measurement.peak_bytes is None else f"{measurement.peak_bytes / 2**20:.1f} MiB"
        place = each.place
        unknown = not (place.tied or place.distinguishable)
        table.add_row(
            "[green]*[/]" if each is compared.winner else "=" if place.tied else "?" if unknown else "",
            each.trial.label,
            f"{middle:.3g} ms ({first:.3g} to {third:.3g})",
            f"{measurement.speedup:.2f}x",
            measurement.speedup_interval.spelled(".2f"),
            "unknown" if math.isnan(place.behind) else f"{math.exp(place.behind):.2f}x",
            f"{verdict.worst:.0e}",
            memory,
        )
    if compared.ranking:
        out.print(table)
    if any(not (each.place.tied or each.place.distinguishable) for each in compared.ranking):
        tail = ", of which a tail takes more than a median" if compared.objective != "median" else ""
        out.print(f"?: too few clean rounds to know its place{tail}.")
    disturbed = [trial for trial in compared.dropped if trial.state == "disturbed"]
    if disturbed:
        out.print(f"Candidates without a time: {len(disturbed)}, for example: {escape(str(disturbed[0].reason))}")
    for trial in compared.dropped:
        if trial not in disturbed:
            out.print(failure_line(trial))
    for notice in compared.notices:
        notes.print(f"[yellow]note:[/] {escape(notice)}")


def noise_line(compared: Comparison) -> str:
    """Return the sentence on the noise of a comparison."""
    floor = f"{math.expm1(compared.noise_floor):.1%}" if math.isfinite(compared.noise_floor) else "unknown"
    return f"Noise floor {floor}; clean rounds: {compared.clean_rounds} of {compared.rounds}."


def trial_json(trial: Trial, raw: bool) -> dict[str, Any]:
    """Return a trial as JSON values: its numbers instead of its samples, or with them where `raw`."""
    values, measured = trial.to_json(), trial.measurement
    if measured is not None:
        samples = {} if raw else {"blocks": len(measured.blocks), "reference_blocks": len(measured.reference_blocks)}
        values["measurement"] |= {**numbers_json(measured), "clean_blocks": len(measured.clean), **samples}
    return values


def numbers_json(measured: Measurement) -> dict[str, float | None]:
    """Return the numbers of a measurement by their names; None where one is unknown."""
    first, median, third = measured.quartiles_ms
    numbers = {
        "median_ms": median,
        "quartile1_ms": first,
        "quartile3_ms": third,
        "p95_ms": measured.p95_ms,
        "speedup": measured.speedup,
        "speedup_low": measured.speedup_interval.low,
        "speedup_high": measured.speedup_interval.high,
    }
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def failure_line(trial: Trial, name: str | None = None) -> str:
    """Return the line of a trial that has no numbers: its `name`, or else its label, its state and the reason."""
    return f"[red]{name or trial.label} {spelled_state(trial.state)}:[/] {escape(trial.reason or '')}"
