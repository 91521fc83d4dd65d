"""`scanlab best` and `scanlab report`: what recorded results say, without measuring again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from scanlab.bench.records import Trial
from scanlab.bench.store import TrialStore
from scanlab.cli.console import AsJson, ImagePath, ProblemText, SuiteName, cases_of, notes, out, print_json
from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanProblem
from scanlab.contract.space import config_key
from scanlab.errors import InputError
from scanlab.runtime.dispatch import Decision, decide
from scanlab.runtime.profile import Profile, load_profile

# Where a report goes that nobody asked for elsewhere, in the folder of the records.
REPORT = "report"


def best(
    problem: ProblemText = None, suite: SuiteName = None, image: ImagePath = None, as_json: AsJson = False
) -> None:
    """Which backend and configuration serve a problem on this machine, and on what basis.

    That is exact, kin (adopted from another machine by `scanlab fleet --adopt`), nearest, heuristic (measured
    elsewhere, on a problem like it) or fallback.

    Example: `scanlab best --problem batch=1,dim=384,length=197`
    """
    profile = load_profile()
    answers = [_answer(case.problem, profile) for case in cases_of(problem, suite, image)]
    if as_json:
        print_json(answers)
        return
    for answer in answers:
        out.print(f"[bold]{answer['problem']}[/]")
        out.print(f"  {answer['backend']} {config_key(answer['config'])}")
        out.print(f"  {answer['basis']}: {escape(answer['reason'])}")
        evidence = answer["evidence"].get("why")
        if evidence:
            out.print(f"  {escape(evidence)}")


def _answer(problem: ScanProblem, profile: Profile | None) -> dict[str, Any]:
    decision: Decision = decide(problem, profile)
    entry = profile.exact(problem) if profile is not None and decision.basis in ("exact", "kin") else None
    return {"problem": problem.key, **asdict(decision), "evidence": {} if entry is None else dict(entry.evidence)}


def report(
    results: Annotated[Path, typer.Argument(help="The folder that trials were recorded in.")] = Path("runs"),
    folder: Annotated[Path | None, typer.Option("--to", help="Where the report goes; RESULTS/report.")] = None,
) -> None:
    """Tables (Markdown, CSV, T4), plots (PNG and SVG) and a page, from recorded results, without measuring again.

    Example: `scanlab report runs`
    """
    for path in write(read(results), folder or results / REPORT):
        out.print(f"wrote {path}")


def read(folder: Path) -> tuple[Trial, ...]:
    """The trials recorded in `folder`, what is wrong with them said; raises InputError where there are none."""
    trials, notices = TrialStore(folder).load()
    for notice in notices:
        notes.print(f"[yellow]note:[/] {escape(notice)}")
    if not trials:
        raise InputError(f"no trials are recorded in {folder}: name a folder that `scanlab tune` wrote to.")
    return trials


def write(trials: Sequence[Trial], folder: Path) -> list[Path]:
    """The report of `trials` on this machine, written to `folder`, and beside it the same in the T4 format."""
    from scanlab.report.document import write_report
    from scanlab.report.t4 import write_t4
    from scanlab.tuning.importance import importances

    here = this_machine()
    return [*write_report(trials, here, folder, importances(trials)), *write_t4(trials, here, folder / "t4")]
