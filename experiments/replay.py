"""A search alone chooses wrong; a comparison of its best candidates on new samples corrects that.

A recorded study is searched again and again on its own recorded noise, by each sampler and with several budgets, and
every choice is held against what all the blocks of the record say together. The study is every configuration of a
backend in rounds side by side on the vim-tiny suite; once it is recorded, replaying it measures nothing:

    python experiments/replay.py --record 2m
    python experiments/replay.py
"""

from pathlib import Path
from typing import Annotated

import common
import pandas as pd
import typer

from scanlab.bench.context import Candidate
from scanlab.bench.store import TrialStore
from scanlab.cli.duration import parse_duration
from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.suites import load_suite
from scanlab.tuning.replay import Policy, most_tried, policies, record_of, replay

BLOCKS = (1, 3, 10)


def record_study(backend: Backend, seconds: float, folder: Path) -> None:
    """Every configuration of `backend` in interleaved rounds beside its defaults."""
    (case,) = load_suite("vim-tiny")
    candidates = [Candidate(backend, config) for config in backend.space.configs(case.problem)]
    common.compared(case.problem, case.inputs, case.label, candidates, seconds, folder, baseline=candidates[0])


def row_of(policy: Policy, size: int) -> dict[str, object]:
    """What a policy does, in words."""
    return {
        "search": "all" if policy.trials == size else policy.sampler,
        "trials": policy.trials,
        "blocks each": policy.blocks,
        "then a race": f"{policy.finalists} x {policy.rounds} rounds" if policy.rounds else "no",
    }


def lessons(frame: pd.DataFrame) -> pd.DataFrame:
    """The defaults of `scanlab tune`, each beside what it is chosen over."""
    raced, few = frame["then a race"] != "no", frame["blocks each"] == BLOCKS[0]
    partial = frame.search != "all"

    def pair(default: str, one: "pd.Series[bool]", other: "pd.Series[bool]") -> dict[str, object]:
        means = {name: frame[chosen] for name, chosen in (("with it", one), ("without", other))}
        said = {
            f"{what} {name}": f"{part[what].mean():.1%}" for what in ("wrong", "regret") for name, part in means.items()
        }
        return {"default": default, **said}

    return pd.DataFrame(
        [
            pair("the best race on new samples", raced, ~raced),
            pair(
                "TPE chooses where time is short, not chance",
                partial & (frame.search == "tpe"),
                frame.search == "random",
            ),
            pair("three blocks or more for each, not one", ~raced & ~few, ~raced & few),
            pair("everything is tried where time suffices, not half or less", ~partial, partial),
        ]
    )


def main(
    record: Annotated[str | None, typer.Option(help="Record the study first, for so long: 2m.")] = None,
    results: Annotated[Path | None, typer.Option(help="The recorded study, where it is another.")] = None,
    backend: Annotated[str, typer.Option(help="Whose search.")] = "native",
    repeats: Annotated[int, typer.Option(help="Replays of each way of choosing.")] = 200,
    out: Path = common.RESULTS / "replay",
) -> None:
    """Replay, and write the page."""
    if record is not None:
        record_study(registry.get(backend), parse_duration(record), out)
    trials = most_tried(TrialStore(results or out).load().trials, backend)
    if not trials:
        raise SystemExit(f"no study of {backend} in {results or out}: record one with --record 2m.")
    study = record_of(trials)
    size = len(study.bags)
    rows = []
    for policy in policies(size, BLOCKS):
        found = replay(study, policy, repeats)
        rows.append(
            row_of(policy, size) | {name: getattr(found, name) for name in ("wrong", "regret", "optimism", "blocks")}
        )
        print(rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    shown = frame.assign(**{name: frame[name].map("{:.1%}".format) for name in ("wrong", "regret", "optimism")})
    shown = shown.assign(blocks=frame.blocks.map("{:.0f}".format)).astype(str)
    blocks = sum(map(len, study.bags.values()))
    caption = (
        f"{size} configurations of {backend} on {trials[0].problem.key}, {blocks} recorded blocks;"
        f" {trials[0].machine.describe()}; {repeats} replays of each row. Wrong: the choice is more than 2 % slower"
        " than the best. Regret: how much slower it is, on average. Optimism: how much faster than it is the number"
        " looks that it was chosen by. Blocks: what one replay takes in all"
    )
    sections = {"The defaults of `scanlab tune`, by the rows below": lessons(frame), "Every way of choosing": shown}
    common.write_page(out, __doc__, caption, {}, sections, frame)


if __name__ == "__main__":
    typer.run(main)
