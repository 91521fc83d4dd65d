"""`scanlab profile`: list, show, remove, restore or compare the choices that serve on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from scanlab.cli.console import AsJson, Exit, op_of, out, plain_table, print_json
from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.space import config_key
from scanlab.errors import InputError
from scanlab.runtime.deployment import ProfileChange, diff, evidence_doubt, remove, restore, standing_rank
from scanlab.runtime.profile import Profile, ProfileEntry, load_profile, profile_path


class Action(StrEnum):
    """Actions on the profile."""

    LIST = "list"
    SHOW = "show"
    REMOVE = "remove"
    RESTORE = "restore"
    DIFF = "diff"


def profile(
    action: Annotated[Action, typer.Argument(help="See above.")] = Action.LIST,
    target: Annotated[
        str | None, typer.Argument(metavar="[PROBLEM or FILE]", help="A problem, as `list` prints it; or a profile.")
    ] = None,
    op: Annotated[str | None, typer.Option(metavar="NAME", help="The op of PROBLEM; the scan by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the choices that serve on this machine; show, remove or restore one; or compare profiles.

    `list` names the problems, their choices, and the rank of the evidence. `show PROBLEM` adds the evidence and the
    replaced choices. `remove PROBLEM` takes a choice out of service, and `restore PROBLEM` restores the one replaced or
    removed last. `diff FILE` shows problems whose choice differs from that of another profile; `diff` alone, from
    before the last replacements. Exits with 1 where `diff` finds a difference.

    Example:
        scanlab profile list
    """
    if action is Action.LIST:
        _list(target, as_json)
    elif action is Action.DIFF:
        _diff(target, as_json)
    else:
        if target is None:
            raise InputError(f"{action} takes a problem: scanlab profile {action} batch=1,dim=384,length=197.")
        problem = registry.parse_problem(target, op_of(op))
        if action is Action.SHOW:
            _show(problem, as_json)
        else:
            entry = remove(problem) if action is Action.REMOVE else restore(problem)
            _confirm(action, entry, as_json)


def _list(target: str | None, as_json: bool) -> None:
    if target is not None:
        raise InputError(f"list takes no problem; for one: scanlab profile show {target}.")
    found = _loaded()
    if as_json:
        print_json(
            {
                "profile": str(profile_path()),
                "machine": found.machine,
                "entries": [_summary(each) for each in found.entries],
                "replaced": [_summary(each) for each in found.replaced],
            }
        )
        return
    if not found.entries and not found.replaced:
        out.print("nothing was chosen on this machine yet. Run `scanlab tune`.")
        return
    table = plain_table("op", "problem", "choice", "evidence", "replaced")
    for entry in found.entries:
        problem, replaced = entry.problem, str(len(found.history(entry.problem)))
        table.add_row(problem.op, problem.key, escape(_label(entry)), escape(_standing(entry)), replaced)
    for problem in dict.fromkeys(each.problem for each in found.replaced):
        if found.exact(problem) is None:
            table.add_row(problem.op, problem.key, "nothing: removed", "", str(len(found.history(problem))))
    out.print(table)


def _show(problem: Problem, as_json: bool) -> None:
    found = _loaded()
    entry, history = found.exact(problem), found.history(problem)
    if entry is None and not history:
        raise InputError(f"nothing was ever chosen for {problem.key}; see `scanlab profile list`.")
    if as_json:
        print_json(
            {
                "entry": None if entry is None else {**_summary(entry), "evidence": dict(entry.evidence)},
                "replaced": [{**_summary(each), "evidence": dict(each.evidence)} for each in history],
            }
        )
        return
    out.print(f"[bold]{problem.key}[/]")
    if entry is None:
        out.print("  nothing: the choice was removed")
    else:
        out.print(f"  {escape(_label(entry))}")
        for line in _evidence_lines(entry):
            out.print(f"  {escape(line)}")
    for each in reversed(history):
        out.print(f"  replaced: {escape(_label(each))} ({escape(_standing(each))})")


def _diff(target: str | None, as_json: bool) -> None:
    found = _loaded()
    now = {entry.problem: entry for entry in found.entries}
    if target is None:
        before = {entry.problem: entry for entry in found.replaced}
        now = {problem: entry for problem, entry in now.items() if problem in before}
    else:
        if not Path(target).is_file():
            raise InputError(f"there is no profile {target}: name the file of another one.")
        other = Profile.load(Path(target), of_this_machine=False)
        before = {entry.problem: entry for entry in other.entries}
    changes = diff(before, now)
    if as_json:
        print_json([_change(each) for each in changes])
    else:
        for each in changes:
            out.print(f"[bold]{each.problem.key}[/]  ({each.problem.op})")
            for sign, entry in (("-", each.before), ("+", each.after)):
                evidence = "" if entry is None else f"  ({escape(_standing(entry))})"
                out.print(f"  {sign} {escape(_label(entry))}{evidence}")
        if not changes:
            out.print("no difference")
    if changes:
        raise typer.Exit(Exit.CHECK_FAILED)


def _confirm(action: Action, entry: ProfileEntry, as_json: bool) -> None:
    if as_json:
        print_json(_summary(entry))
        return
    if action is Action.REMOVE:
        out.print(f"removed {escape(_label(entry))} for {entry.problem.key}; `scanlab profile restore` puts it back.")
    else:
        out.print(
            f"{escape(_label(entry))} serves {entry.problem.key} again, on its evidence ({escape(_standing(entry))})."
        )


def _loaded() -> Profile:
    return load_profile() or Profile.empty()


def _label(entry: ProfileEntry | None) -> str:
    return "nothing" if entry is None else f"{entry.backend} {config_key(entry.config)}"


def _standing(entry: ProfileEntry) -> str:
    """Return the rank of an entry's evidence here, and the reason where it counts for nothing."""
    return ": ".join(filter(None, (standing_rank(entry).label, evidence_doubt(entry))))


def _evidence_lines(entry: ProfileEntry) -> list[str]:
    lines = [f"evidence: {_standing(entry)}"]
    if entry.evidence.get("why"):
        lines.append(str(entry.evidence["why"]))
    return lines


def _summary(entry: ProfileEntry) -> dict[str, Any]:
    return {
        "op": entry.problem.op,
        "problem": entry.problem.key,
        "backend": entry.backend,
        "source_hash": entry.source_hash,
        "config": dict(entry.config),
        "rank": standing_rank(entry).label,
        "doubt": evidence_doubt(entry),
        "adopted_from": entry.adopted_from,
        "why": entry.evidence.get("why"),
    }


def _change(change: ProfileChange) -> dict[str, Any]:
    return {
        "problem": change.problem.key,
        "before": None if change.before is None else _summary(change.before),
        "after": None if change.after is None else _summary(change.after),
    }
