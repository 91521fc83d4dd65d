"""`scanlab replay`: how often other ways of searching would have chosen wrong, by the recorded noise."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from scanlab.cli.console import AsJson, notes, out, print_json
from scanlab.errors import InputError
from scanlab.lab.results import Results, Trial


def replay(
    results: Annotated[Path, typer.Argument(help="The folder that trials were recorded in.")] = Path("runs"),
    backend: Annotated[str | None, typer.Option(help="Whose search; by default the one with most trials.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Replays of each way of choosing.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Run a recorded search again on its recorded samples, by several samplers and budgets, without measuring.

    Example: `scanlab replay runs --backend native`
    """
    # Loading optuna takes a second, which no other command that only reads should pay.
    from scanlab.lab.replay import Policy, record_of
    from scanlab.lab.replay import replay as replay_policy

    record = record_of(_most_tried(Results(results).load().trials, backend))
    size = len(record.bags)
    policies = [
        Policy(sampler, trials, blocks, finalists, rounds)
        for trials in sorted({max(2, size // 4), max(2, size // 2), size})
        for sampler in (("tpe", "random") if trials < size else ("random",))
        for blocks in (1, 3)
        for finalists, rounds in ((1, 0), (8, 20))
    ]
    with notes.status("replay") as status:
        found = []
        for policy in policies:
            status.update(f"replay: {policy.sampler}, {policy.trials} trials")
            found.append(replay_policy(record, policy, repeats))
    if as_json:
        print_json([asdict(each) for each in found])
        return
    out.print(f"[bold]{record.backend}[/]: {size} configurations, {sum(map(len, record.bags.values()))} blocks")
    table = Table("search", "trials", "blocks each", "then a race", "wrong", "regret", "optimism", "blocks", box=None)
    for each in found:
        policy = each.policy
        table.add_row(
            "all" if policy.trials == size else policy.sampler,
            str(policy.trials),
            str(policy.blocks),
            f"{policy.finalists} x {policy.rounds}" if policy.rounds else "no",
            f"{each.wrong:.0%}",
            f"{each.regret:.1%}",
            f"{each.optimism:.1%}",
            f"{each.blocks:.0f}",
        )
    out.print(table)
    out.print(
        "wrong: the choice is more than 2 % slower than the best; regret: how much slower it is on average;"
        " optimism: how much faster than it is the number looks that it was chosen by."
    )


def _most_tried(trials: tuple[Trial, ...], backend: str | None) -> list[Trial]:
    """The timed trials of the problem, machine and source that one backend has tried most configurations on."""
    kinds: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        if trial.measurement is not None and trial.phase in ("search", "race") and backend in (None, trial.backend):
            kinds.setdefault(trial.identity[:-1], []).append(trial)
    most = max(kinds.values(), key=lambda group: len({trial.identity for trial in group}), default=[])
    if len({trial.identity for trial in most}) < 2:
        raise InputError("no backend has two timed configurations of one problem there. Run `scanlab tune` first.")
    return most
