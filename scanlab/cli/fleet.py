"""`scanlab fleet`: results of the machines that share a storage, and their use for this one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from scanlab.bench.records import Trial
from scanlab.cli.console import AsJson, Exit, notes, out, plain_table, print_json
from scanlab.cli.duration import spell_duration
from scanlab.contract.base import Problem
from scanlab.contract.machine import this_machine
from scanlab.runtime.decisions import refuses
from scanlab.runtime.deployment import deploy
from scanlab.runtime.profile import Profile, ProfileEntry, load_profile, profile_path
from scanlab.tuning.fleet.overview import BestTrial, FleetOverview, MachineSummary, fleet_overview
from scanlab.tuning.fleet.storage import open_storage


def fleet(
    storage: Annotated[
        str, typer.Option(help="Storage of the machines: a database URL, a journal file, or grpc://HOST:PORT.")
    ],
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Take over choices for problems not tuned on this machine: see above.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the machines that tune with one storage, their progress, the best of each, and which backend wins where.

    With --adopt this machine's profile takes over choices for problems tuned elsewhere and not here: from its own kind
    of machine as it is, and else from its nearest machine (by instruction sets, cores and caches), which is marked as
    such until `scanlab tune` chooses here.

    Example:
        scanlab fleet --storage runs/studies.journal    # after a tuning
    """
    opened, notices = open_storage(storage, Path(), must_exist=True)
    found = fleet_overview(opened)
    for notice in (*notices, *found.notices):
        notes.print(f"[yellow]note:[/] {escape(notice)}")
    entries = _adopt(found) if adopt else ()
    if as_json:
        print_json(_as_json(found, entries))
    else:
        _show(found)
        for entry in entries:
            out.print(f"adopted for {entry.problem.key}: {escape(_told(entry))}")
        if entries:
            out.print(f"wrote {profile_path()}, which serves from now on")
    if not found.machines:
        notes.print("no machine has tuned with this storage yet: run `scanlab tune --storage ...` on the machines.")
        raise typer.Exit(Exit.CANNOT_RUN)


def _show(found: FleetOverview) -> None:
    machines = plain_table("machine", "processor", "workers", "tried", "last heard of")
    for kind in found.machines:
        machines.add_row(
            kind.machine.silicon_id,
            escape(kind.machine.describe()),
            _workers(kind),
            _tried(kind),
            _heard(kind),
        )
    out.print(machines)
    if not found.trials:
        notes.print("no records travel with these studies: they are in the results folder; see `scanlab report`.")
        return
    best = plain_table("problem", "machine", "best", "time", "speed-up (95 %)", "by")
    for each in found.best:
        measurement = each.trial.measurement
        assert measurement is not None
        best.add_row(
            each.trial.problem.key,
            each.trial.machine.silicon_id,
            escape(each.trial.label),
            f"{measurement.median_ms:.3g} ms",
            f"{measurement.speedup:.2f}x ({measurement.speedup_interval.spelled('.2f')})",
            _basis(each),
        )
    out.print(best)
    wins = plain_table("problem", *(each.machine.silicon_id for each in found.machines))
    for problem in found.problems:
        wins.add_row(problem.key, *(name or "" for name in _winners(found, problem).values()))
    out.print("which backend wins where:")
    out.print(wins)


def _workers(each: MachineSummary) -> str:
    return f"{each.num_working} at work, {each.num_workers} in all"


def _tried(each: MachineSummary) -> str:
    return str(each.num_tried) if each.num_configurations is None else f"{each.num_tried} of {each.num_configurations}"


def _heard(each: MachineSummary) -> str:
    return "" if each.heard_at is None else f"{spell_duration(max(0.0, time.time() - each.heard_at))} ago"


def _basis(best: BestTrial) -> str:
    return {"holdout": "hold-out", "comparison": "comparison"}.get(best.trial.phase, "search alone")


def _winners(found: FleetOverview, problem: Problem) -> dict[str, str | None]:
    """Return the winning backend by kind of machine."""
    bests = {each.machine.silicon_id: found.best_on(each.machine.silicon_id, problem) for each in found.machines}
    return {silicon_id: None if best is None else best.trial.backend for silicon_id, best in bests.items()}


def _adopt(found: FleetOverview) -> tuple[ProfileEntry, ...]:
    """Deploy the choices of other machines for problems that were not tuned here."""
    profile = load_profile() or Profile.empty()
    here = this_machine()
    entries = []
    for problem in found.problems:
        own = profile.exact(problem)
        best = found.best_for(here, problem, fits=_fits)
        if best is None or (own is not None and own.adopted_from is None):
            continue
        trial = best.trial
        adopted_from = None if trial.machine.silicon_id == here.silicon_id else trial.machine.describe()
        evidence = {"why": best.why or f"{trial.label}: by the search alone", "trial": trial.to_json()}
        entries.append(ProfileEntry(problem, trial.backend, trial.source_hash, trial.config, evidence, adopted_from))
    if not entries:
        return ()
    deployment = deploy(entries)
    for notice in deployment.notices:
        notes.print(f"[yellow]note:[/] {escape(notice)}")
    return deployment.deployed


def _fits(trial: Trial) -> bool:
    return refuses(trial.backend, trial.config, trial.problem) is None


def _told(entry: ProfileEntry) -> str:
    source = "this kind of machine" if entry.adopted_from is None else f"its nearest machine, {entry.adopted_from}"
    return f"the choice of {source}: {entry.evidence['why']}"


def _as_json(found: FleetOverview, adopted: tuple[ProfileEntry, ...]) -> dict[str, Any]:
    return {
        "machines": [
            {
                "silicon_id": each.machine.silicon_id,
                "machine": each.machine.to_json(),
                "workers": each.num_workers,
                "working": each.num_working,
                "tried": each.num_tried,
                "configurations": each.num_configurations,
                "heard_at": each.heard_at,
            }
            for each in found.machines
        ],
        "best": [{"trial": each.trial.to_json(), "why": each.why, "by": _basis(each)} for each in found.best],
        "wins": {problem.key: _winners(found, problem) for problem in found.problems},
        "adopted": [entry.to_json() for entry in adopted],
    }
