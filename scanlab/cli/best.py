"""`scanlab best`: show the choice that serves a problem on this machine and why, or measure it again."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from scanlab import settings
from scanlab.bench.records import label_of, read_trial
from scanlab.bench.store import TrialStore
from scanlab.cli.console import (
    AsJson,
    Exit,
    ImagePath,
    OpName,
    ProblemTexts,
    SuiteName,
    notes,
    op_of,
    out,
    print_json,
    problems_of,
)
from scanlab.cli.duration import parse_duration
from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.evidence import EvidenceRank
from scanlab.contract.space import config_key
from scanlab.errors import UNREADABLE, InputError
from scanlab.runtime.decisions import Decision, decisions, nothing_serves
from scanlab.runtime.deployment import evidence_doubt, standing_rank
from scanlab.runtime.profile import Profile, ProfileEntry, load_profile
from scanlab.tuning.recheck import CheckedChoice
from scanlab.tuning.recheck import recheck as recheck_choice
from scanlab.tuning.selection import untuned_candidate

RECHECK_BUDGET, RECHECK_FOLDER = "30s", "runs/recheck"
VERDICTS = {True: "[green]holds[/]", False: "[bold red]DEMOTED[/]", None: "[yellow]unknown[/]"}


def best(
    op: OpName = None,
    problem: ProblemTexts = None,
    suite: SuiteName = None,
    image: ImagePath = None,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Verify and time every deployed choice again, against its evidence.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option(help=f"With --recheck: the time for each choice, such as 2m; {RECHECK_BUDGET}.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--out", help=f"With --recheck: the folder of its records; {RECHECK_FOLDER}.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show which backend and configuration serve a problem on this machine, and on what basis.

    The basis is named (by SCANLAB_BACKEND), exact (tuned for this problem), nearest (tuned for one like it), adopted
    (from another machine, by `scanlab fleet --adopt`), default (one that ships, measured elsewhere) or fallback. Then
    comes the one that would serve in its place. With --recheck, exits with 1 where a choice no longer holds and with 3
    where the time did not suffice to tell.

    Example:
        scanlab best --problem batch=1,dim=384,length=197
    """
    if recheck:
        if problem is not None or suite is not None or image is not None:
            raise InputError("--recheck measures every deployed choice: leave --problem, --suite and --image out.")
        _recheck(parse_duration(budget or RECHECK_BUDGET), results or Path(RECHECK_FOLDER), as_json)
        return
    if budget is not None or results is not None:
        raise InputError("--budget and --out are of --recheck: without it nothing is measured.")
    profile = load_profile()
    answers = [_answer(each, profile) for each in problems_of(problem, suite, image, op_of(op))]
    if as_json:
        print_json(answers)
        return
    for answer in answers:
        out.print(f"[bold]{answer['problem']}[/]")
        out.print(f"  {answer['backend']} {config_key(answer['config'])}")
        out.print(f"  {answer['basis']}: {escape(answer['reason'])}")
        if answer["evidence"].get("why"):
            standing = ": ".join(filter(None, (answer["rank"], answer["doubt"])))
            out.print(f"  evidence ({escape(standing)}): {escape(str(answer['evidence']['why']))}")
        second = answer["second"]
        if second is not None:
            out.print(f"  in its place: {second['backend']} {config_key(second['config'])} ({second['basis']})")
        if answer["tune"] is not None:
            out.print(f"  to tune for it: {answer['tune']}")


def _answer(problem: Problem, profile: Profile | None) -> dict[str, Any]:
    named = _named(problem)
    found = list(itertools.islice(decisions(problem, profile), 2))
    if named is not None:
        found.insert(0, named)
    if not found:
        raise nothing_serves(problem)
    first, second = (*found, None)[:2]
    assert first is not None
    entry = profile.exact(problem) if profile is not None and first.basis in ("exact", "adopted") else None
    op = "" if problem.op == registry.DEFAULT_OP else f"--op {problem.op} "
    return {
        "op": problem.op,
        "problem": problem.key,
        **asdict(first),
        "rank": EvidenceRank.NONE.label if entry is None else standing_rank(entry).label,
        "doubt": None if entry is None else evidence_doubt(entry),
        "evidence": {} if entry is None else dict(entry.evidence),
        "second": None if second is None else asdict(second),
        "tune": None if first.basis in ("named", "exact") else f"scanlab tune {op}--problem {problem.key}",
    }


def _named(problem: Problem) -> Decision | None:
    """Return the decision by SCANLAB_BACKEND, which precedes every other; None where it is not set."""
    text = settings.BACKEND.get()
    if text is None or problem.op != registry.DEFAULT_OP:
        return None
    backend, config = registry.parse_selection(text)
    complete = backend.space.complete(config, problem, backend.name)
    return Decision(backend.name, complete, "named", f"{settings.BACKEND.name}={text} names it")


def _recheck(seconds: float, results: Path, as_json: bool) -> None:
    profile = load_profile()
    if profile is None or not profile.entries:
        raise InputError("nothing was chosen on this machine yet. Run `scanlab tune`.")
    record = TrialStore(results)
    record.prepare()
    checked: list[tuple[ProfileEntry, CheckedChoice]] = []
    try:
        for entry in profile.entries:
            with notes.status(f"recheck: {entry.backend} on {entry.problem.key}"):
                checked.append((entry, _check(entry, record, seconds)))
            if not as_json:
                entry, outcome = checked[-1]
                out.print(f"{VERDICTS[outcome.holds]}  {entry.problem.key}\n  {escape(outcome.reason)}")
    except KeyboardInterrupt:
        notes.print("interrupted: a recheck changes nothing, and every choice serves as before.")
        raise typer.Exit(Exit.INTERRUPTED) from None
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


def _check(entry: ProfileEntry, record: TrialStore, seconds: float) -> CheckedChoice:
    evidence = entry.evidence.get("trial")
    if evidence is None:
        return CheckedChoice(False, f"the choice of {entry.backend} carries no evidence")
    try:
        trial = read_trial(evidence)
    except UNREADABLE as error:
        return CheckedChoice(False, f"the evidence for {entry.backend} is damaged: {type(error).__name__}: {error}")
    if (trial.problem, trial.backend, trial.config) != (entry.problem, entry.backend, entry.config):
        deployed = label_of(entry.backend, entry.config)
        return CheckedChoice(False, f"{deployed} is deployed on the evidence of {trial.label} for {trial.problem.key}")
    untuned = untuned_candidate(entry.problem)
    rivals = [] if untuned is None or untuned.label == trial.label else [untuned]
    return recheck_choice(trial, record, seconds, rivals)
