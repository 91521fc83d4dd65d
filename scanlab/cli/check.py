"""`scanlab check`: whether this machine's profile still holds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from scanlab.bench.records import Trial, label_of
from scanlab.bench.store import TrialStore
from scanlab.cli.budget import parse_duration
from scanlab.cli.console import AsJson, Exit, notes, out, print_json
from scanlab.errors import InputError
from scanlab.runtime.profile import ProfileEntry, load_profile
from scanlab.tuning.recheck import Checked
from scanlab.tuning.recheck import check as check_trial

SPOKEN = {True: "[green]holds[/]", False: "[bold red]DEMOTED[/]", None: "[yellow]untold[/]"}


def check(
    budget: Annotated[str, typer.Option(help="Time for each choice: 30s, 2m.")] = "30s",
    results: Annotated[Path, typer.Option("--out", help="The folder that the trials are recorded in.")] = Path(
        "runs/check"
    ),
    as_json: AsJson = False,
) -> None:
    """Prove and time every choice of this machine's profile again, in fresh processes, against its own evidence.

    Exits with 1 where one no longer holds, with 3 where the time did not suffice to tell.
    Example: `scanlab check --budget 20s`
    """
    seconds = parse_duration(budget)
    profile = load_profile()
    if profile is None or not profile.entries:
        raise InputError("nothing was chosen on this machine yet. Run `scanlab tune`.")
    record = TrialStore(results)
    record.prepare()
    checked: list[tuple[ProfileEntry, Checked]] = []
    for entry in profile.entries:
        with notes.status(f"check: {entry.backend} on {entry.problem.key}"):
            checked.append((entry, _check(entry, record, time.monotonic() + seconds)))
        if not as_json:
            entry, outcome = checked[-1]
            out.print(f"{SPOKEN[outcome.holds]}  {entry.problem.key}\n  {escape(outcome.reason)}")
    if as_json:
        print_json(
            [
                {"problem": entry.problem.key, "backend": entry.backend, "holds": found.holds, "reason": found.reason}
                for entry, found in checked
            ]
        )
    if any(found.holds is False for _, found in checked):
        notes.print("run `scanlab tune` to choose again.")
        raise typer.Exit(Exit.CHECK_FAILED)
    if any(found.holds is None for _, found in checked):
        raise typer.Exit(Exit.CANNOT_RUN)


def _check(entry: ProfileEntry, record: TrialStore, deadline: float) -> Checked:
    evidence = entry.evidence.get("trial")
    if evidence is None:
        return Checked(False, f"the choice of {entry.backend} carries no evidence")
    try:
        trial = Trial.from_json(evidence)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return Checked(False, f"the evidence for {entry.backend} is damaged: {type(error).__name__}: {error}")
    if (trial.problem, trial.backend, trial.config) != (entry.problem, entry.backend, entry.config):
        deployed = label_of(entry.backend, entry.config)
        return Checked(False, f"{deployed} is deployed on the evidence of {trial.label} for {trial.problem.key}")
    return check_trial(trial, record, deadline)
