"""Output of `scanlab tune`: progress, tables, report, and deployment of the winners."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from scanlab.bench.records import Trial
from scanlab.bench.store import TrialStore
from scanlab.cli.bench import failure_line, show_comparison, trial_json
from scanlab.cli.console import Exit, notes, out
from scanlab.cli.duration import spell_duration
from scanlab.cli.report import REPORT, write
from scanlab.contract.machine import this_machine
from scanlab.report.decision import TuningDecision, save_decisions
from scanlab.report.select import select
from scanlab.runtime.deployment import Deployment, deploy
from scanlab.runtime.profile import ProfileEntry
from scanlab.tuning.fleet.storage_name import mask_words
from scanlab.tuning.result import Event, TuningResult

# A log file gets a line for each build, and otherwise one per this many seconds.
LINE_EVERY_S = 10.0


@contextmanager
def progress(silent: bool) -> Iterator[Any]:
    """Show a live bar over the budget, or lines where no terminal is; yield the consumer of the events."""
    columns = (
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[left]}"),
        TextColumn("[green]{task.fields[best]}[/]"),
        TextColumn("[dim]{task.description}[/]"),
    )
    has_bar = notes.is_terminal and not silent
    said_at = -math.inf
    with Progress(*columns, console=notes, transient=True, disable=not has_bar) as progress:
        task = progress.add_task("computing the float64 reference", total=1.0, left="", best="")

        def on_event(event: Event) -> None:
            nonlocal said_at
            best = "" if event.best is None else _short(event.best)
            left = "" if event.left_s == math.inf else f"{spell_duration(event.left_s)} of the budget left"
            progress.update(task, completed=event.done, description=escape(event.label), left=left, best=escape(best))
            is_due = event.kind == "building" or time.monotonic() - said_at > LINE_EVERY_S
            if is_due and not has_bar and not silent:
                said_at = time.monotonic()
                said = "; ".join(filter(None, (event.label, best, left)))
                notes.print(f"[dim]{spell_duration(event.elapsed_s)}: {escape(said)}[/]")

        yield on_event


def _short(trial: Trial) -> str:
    measurement = trial.measurement
    assert measurement is not None
    return f"best so far {trial.label}: {measurement.median_ms:.3g} ms, {measurement.speedup:.3g}x"


def show(found: TuningResult) -> None:
    """Print the comparison of a tuning, the failures and the notices."""
    if found.comparison is not None:
        show_comparison(found.comparison)
    alike: dict[tuple[str, str | None], list[Trial]] = {}
    for trial in found.failed:
        alike.setdefault((trial.state, trial.reason), []).append(trial)
    for trials in alike.values():
        out.print(failure_line(trials[0], ", ".join(dict.fromkeys(trial.backend for trial in trials))))
    states = ("ok", "pruned", "disturbed", "wrong", "crashed")
    counts = {state: sum(trial.state == state for trial in found.trials) for state in states}
    tried = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    out.print(f"{len(found.trials)} configurations ({tried or 'none'}), {found.new} of them tried now.")
    out.print(duration_line(found))
    said_above = () if found.comparison is None else found.comparison.notices
    for notice in [each for each in found.notices if each not in said_above]:
        notes.print(f"[yellow]note:[/] {escape(notice)}")


def duration_line(found: TuningResult) -> str:
    """Return the time of a tuning by use; the budget covers all but the building."""
    building_s = found.elapsed_s - found.measuring_s - found.waited_s
    parts = [f"{found.measuring_s:.0f} s of verifying and measuring", f"{building_s:.0f} s of building"]
    if found.waited_s >= 1:
        parts.append(f"{found.waited_s:.0f} s of waiting for a quiet machine")
    return f"Took {found.elapsed_s:.0f} s: {', '.join(parts)}."


def say_why(why: str, is_choice: bool) -> None:
    """Print the sentence that names the winner, or says why there is none."""
    out.print(f"[bold {'green' if is_choice else 'yellow'}]{escape(why)}[/]")


def write_results(record: TrialStore) -> list[Path]:
    """Write the report of the records; nothing where this machine has no trials yet, as after an early Ctrl-C."""
    trials = record.load().trials
    if not select(trials, this_machine()).trials:
        return []
    try:
        return write(trials, record.folder / REPORT, record.folder)
    except KeyboardInterrupt:
        cure = shlex.join(["scanlab", "report", str(record.folder)])
        notes.print(f"interrupted while the report was written: everything else is done; `{escape(cure)}` writes it.")
        raise typer.Exit(Exit.INTERRUPTED) from None


def end_command(interrupted: bool, has_winner: bool) -> None:
    """End the command with its exit code where a tuning was interrupted or has no winner; else do nothing.

    Raises:
        typer.Exit: It was interrupted, or has no winner.
    """
    if interrupted:
        notes.print("interrupted: everything measured is kept; run the same command again to go on.")
        raise typer.Exit(Exit.INTERRUPTED)
    if not has_winner:
        raise typer.Exit(Exit.CANNOT_RUN)


def deploy_winners(entries: Sequence[ProfileEntry]) -> Deployment | None:
    """Put entries into this machine's profile and print refusals; None where there are no entries."""
    if not entries:
        return None
    deployment = deploy(entries)
    for notice in deployment.notices:
        notes.print(f"[yellow]note:[/] {escape(notice)}")
    return deployment


def record_decisions(
    labelled: Iterable[tuple[str, TuningResult]], deployment: Deployment | None, budget: str, folder: Path
) -> None:
    """Save the decision of each tuning beside its records.

    Args:
        labelled: Origin of the inputs and result of each tuning.
        deployment: The deployment of the winners, or None.
        budget: Budget of all tunings, as text.
        folder: Folder of the records.
    """
    served = {each.problem for each in deployment.deployed} if deployment is not None else set()
    command = shlex.join(["scanlab", *mask_words(sys.argv[1:])])
    decisions = [
        TuningDecision.of(
            found,
            label,
            this_machine(),
            deployed=found.winner is not None and found.problem in served,
            command=command,
            budget=budget,
        )
        for label, found in labelled
    ]
    save_decisions(decisions, folder)


def say_where(written: Sequence[Path], deployment: Deployment | None) -> None:
    """Print the files that were written, and the profile where it changed."""
    for path in written:
        if path.suffix in (".md", ".html", ".png"):
            out.print(f"wrote {path}")
    if deployment is not None and deployment.deployed:
        out.print(f"wrote {deployment.path}, which serves from now on")


def as_json(found: TuningResult, raw: bool) -> dict[str, Any]:
    """Return a tuning as JSON values, with its samples where `raw`."""
    winner = found.winner
    return {
        "winner": None if winner is None else trial_json(winner, raw),
        "why": found.why,
        "evidence": found.evidence.label,
        "gain_over_defaults": None if found.gain is None else dataclasses.asdict(found.gain),
        "ties": sorted(found.tied),
        "failed": [{"backend": each.backend, "state": each.state, "reason": each.reason} for each in found.failed],
        "tried": len(found.trials),
        "new": found.new,
        "interrupted": found.interrupted,
        "elapsed_s": found.elapsed_s,
        "measuring_s": found.measuring_s,
        "waited_s": found.waited_s,
        "notices": list(found.notices),
    }
