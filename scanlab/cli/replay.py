"""`scanlab replay`: how often other ways of searching would have chosen wrong, by the recorded noise."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from scanlab.cli.console import AsJson, notes, out, print_json
from scanlab.cli.recorded import read
from scanlab.errors import InputError


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
    from scanlab.tuning.replay import most_tried, policies, record_of
    from scanlab.tuning.replay import replay as replay_policy

    most = most_tried(read(results), backend)
    if len({trial.identity for trial in most}) < 2:
        whose = backend or "no backend"
        raise InputError(
            f"{whose} has {'not ' if backend else ''}two timed configurations of one problem in {results}:"
            " give `scanlab tune` more time, or name another backend or folder."
        )
    record = record_of(most)
    size = len(record.bags)
    with notes.status("replay") as status:
        found = []
        for policy in policies(size):
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
