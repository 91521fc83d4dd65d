"""Output of `scanlab tune`: progress, tables and JSON."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from scanlab.bench.ranking import Comparison, RankedCandidate
from scanlab.bench.records import Trial
from scanlab.cli.bench import failure_line, noise_line, numbers_json, show_comparison, trial_json
from scanlab.cli.console import notes, out
from scanlab.cli.duration import spell_duration
from scanlab.report.decision import TuningDecision
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
        out.print(noise_line(found.comparison))
    alike: dict[tuple[str, str | None], list[Trial]] = {}
    for trial in found.failed:
        alike.setdefault((trial.state, trial.reason), []).append(trial)
    for trials in alike.values():
        out.print(failure_line(trials[0], ", ".join(dict.fromkeys(trial.backend for trial in trials))))
    states = ("ok", "pruned", "disturbed", "wrong", "crashed")
    counts = {state: sum(trial.state == state for trial in found.trials) for state in states}
    tried = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    out.print(f"Configurations: {len(found.trials)} ({tried or 'none'}), {found.new} of them tried now.")
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


def as_json(found: TuningResult, decision: TuningDecision, raw: bool) -> dict[str, Any]:
    """Return a tuning and its decision as JSON values, with its samples where `raw`."""
    winner, comparison = found.winner, found.comparison
    return {
        **decision.to_json(),
        "machine": decision.machine.describe(),
        "ranking": [] if comparison is None else [_ranked_json(each, comparison) for each in comparison.ranking],
        "winner": None if winner is None else trial_json(winner, raw),
        "gain_over_defaults": None if found.gain is None else dataclasses.asdict(found.gain),
        "failed": [{"backend": each.backend, "state": each.state, "reason": each.reason} for each in found.failed],
        "tried": len(found.trials),
        "new": found.new,
        "interrupted": found.interrupted,
        "elapsed_s": found.elapsed_s,
        "measuring_s": found.measuring_s,
        "waited_s": found.waited_s,
    }


def _ranked_json(ranked: RankedCandidate, comparison: Comparison) -> dict[str, Any]:
    """Return the place of a candidate and its numbers as JSON values; None where a number is unknown."""
    measured, place = ranked.trial.measurement, ranked.place
    assert measured is not None
    behind = {"behind": place.behind, "behind_low": place.interval.low, "behind_high": place.interval.high}
    return {
        "backend": ranked.trial.backend,
        "config": dict(ranked.trial.config),
        "is_winner": ranked is comparison.winner,
        "is_untuned": ranked.is_untuned,
        "tied": place.tied,
        "slower": place.distinguishable,
        **{name: math.exp(value) if math.isfinite(value) else None for name, value in behind.items()},
        "attainable_share": ranked.attainable_share,
        **numbers_json(measured),
    }
