"""`scanlab report`: write tables, figures and a page from recorded trials, without measuring again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from scanlab.bench.records import Trial
from scanlab.bench.store import TrialStore
from scanlab.cli.console import notes, out
from scanlab.contract.machine import this_machine
from scanlab.errors import InputError

# The folder of a report for which no other was named, below the folder of the records.
REPORT = "report"


def report(
    results: Annotated[Path, typer.Argument(help="The folder that trials were recorded in.")] = Path("runs"),
    folder: Annotated[Path | None, typer.Option("--to", help="Where the report goes; RESULTS/report.")] = None,
) -> None:
    """Write tables (Markdown, CSV, T4), plots (PNG and SVG) and a page from recorded results, without measuring.

    Example: `scanlab report runs`
    """
    for path in write(read(results), folder or results / REPORT, results):
        out.print(f"wrote {path}")


def read(folder: Path) -> tuple[Trial, ...]:
    """Return the trials recorded in `folder`, and print what is wrong with them.

    Raises:
        InputError: There are no trials.
    """
    trials, notices = TrialStore(folder).load()
    for notice in notices:
        notes.print(f"[yellow]note:[/] {escape(notice)}")
    if not trials:
        raise InputError(f"no trials are recorded in {folder}: name a folder that `scanlab tune` wrote to.")
    return trials


def write(trials: Sequence[Trial], folder: Path, results: Path) -> list[Path]:
    """Write the report of `trials` and of the decisions in `results` to `folder`, and beside it the T4 format."""
    from scanlab.report.decision import load_decisions
    from scanlab.report.kernel_tuner_t4 import write_t4
    from scanlab.report.write import write_report
    from scanlab.tuning.importance import importances

    here = this_machine()
    decisions, notices = load_decisions(results)
    for notice in notices:
        notes.print(f"[yellow]note:[/] {escape(notice)}")
    written = write_report(trials, here, folder, importances(trials), decisions)
    return [*written, *write_t4(trials, here, folder / "t4")]
