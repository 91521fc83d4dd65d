"""`scanlab report`: write tables, figures and a page from recorded trials, without measuring again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from scanlab.bench.records import Trial
from scanlab.bench.store import TrialStore
from scanlab.cli.console import notes, out, plain_table
from scanlab.contract.machine import this_machine
from scanlab.errors import InputError

if TYPE_CHECKING:
    from scanlab.report.decision import TuningDecision

# The folder of a report for which no other was named, below the folder of the records.
REPORT = "report"
COMPARISON = "comparison"


def report(
    results: Annotated[Path, typer.Argument(help="The folder that trials were recorded in.")] = Path("runs"),
    folder: Annotated[
        Path | None, typer.Option("--to", help="Where the report goes; RESULTS/report, or B/comparison.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A B", help="Compare the results in A and B instead, such as two machines."),
    ] = None,
) -> None:
    """Write tables (Markdown, CSV, T4), plots (PNG and SVG) and a page from recorded results, without measuring.

    Example:
        scanlab report runs                         # after a tuning
        scanlab report --compare runs-before runs   # after two tunings
    """
    if compare is None:
        written = write(read(results), folder or results / REPORT, results)
    else:
        written = _write_comparison(*compare, folder or compare[1] / COMPARISON)
    for path in written:
        out.print(f"wrote {path}")


def read(folder: Path) -> tuple[Trial, ...]:
    """Return the trials recorded in `folder`, and print their faults.

    Raises:
        InputError: If there are none.
    """
    trials, notices = TrialStore(folder).load()
    for notice in notices:
        notes.print(f"[yellow]note:[/] {escape(notice)}")
    if not trials:
        raise InputError(f"no trials are recorded in {folder}: name a folder that `scanlab tune` wrote to.")
    return trials


def write(trials: Sequence[Trial], folder: Path, results: Path) -> list[Path]:
    """Write the report of `trials` and of the decisions in `results` to `folder`, and beside it the T4 format.

    It is about this machine, or, where nothing was measured here, about the machine that was measured last.
    """
    from scanlab.report.breakdown import load_breakdowns
    from scanlab.report.kernel_tuner_t4 import write_t4
    from scanlab.report.select import subject
    from scanlab.report.write import write_report
    from scanlab.tuning.importance import importances

    here = this_machine()
    machine = subject(trials, here)
    if machine is not here:
        notes.print(f"[yellow]note:[/] nothing was measured here: the report is about {escape(machine.describe())}")
    breakdowns, notices = load_breakdowns(results, machine)
    for notice in notices:
        notes.print(f"[yellow]note:[/] {escape(notice)}")
    written = write_report(trials, machine, folder, importances(trials), _decisions(results), breakdowns)
    return [*written, *write_t4(trials, machine, folder / "t4")]


def _write_comparison(before: Path, after: Path, folder: Path) -> list[Path]:
    """Write the comparison of two results folders, and print the changes."""
    from scanlab.report.compare import LEGEND, Side, change_table, compare, named, summary, write_comparison

    here = this_machine()
    names = [path.name if before.name != after.name else str(path) for path in (before, after)]
    one, other = (
        Side.of(name, read(path), _decisions(path), here) for name, path in zip(names, (before, after), strict=True)
    )
    changes = compare(one, other)
    for contest in dict.fromkeys(change.contest for change in changes):
        own = [change for change in changes if change.contest == contest]
        out.print(f"[bold]{escape(contest.title)}[/]")
        frame = named(change_table(own)[["backend", "before", "after", "times as fast", "verdict"]], one, other)
        table = plain_table(*frame.columns)
        for row in frame.itertuples(index=False):
            table.add_row(*row)
        out.print(table)
        out.print(escape(summary(own, one, other)))
    if any(each.by_speedup for each in changes):
        out.print(LEGEND)
    return write_comparison(changes, one, other, folder)


def _decisions(results: Path) -> Sequence[TuningDecision]:
    from scanlab.report.decision import load_decisions

    decisions, notices = load_decisions(results)
    for notice in notices:
        notes.print(f"[yellow]note:[/] {escape(notice)}")
    return decisions
