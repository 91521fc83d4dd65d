"""A search alone chooses wrong; a comparison of its best candidates on new samples corrects that.

A recorded study is searched again and again on its own recorded noise, by each sampler and with several budgets, and
every choice is compared with all the blocks of the record together. Every configuration is a bag of blocks,
each a paired ratio that was measured; a replayed trial draws consecutive blocks, so that what drifted in the record
drifts in the replay. Candidates of a comparison draw apart, where real ones share their rounds, so that the figures
are on the careful side. The study is every configuration of a backend in rounds side by side on the vim-tiny suite;
once it is recorded, replaying it measures nothing:

    python experiments/replay.py --record 2m
    python experiments/replay.py
"""

import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import common
import optuna
import pandas as pd
import typer
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from scanlab.bench.context import Candidate
from scanlab.bench.records import Trial
from scanlab.bench.store import TrialStore
from scanlab.cli.duration import parse_duration
from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.contract.space import Config, Value, config_key
from scanlab.suites import load_suite
from scanlab.tuning.fleet.storage import quiet_optuna
from scanlab.tuning.search import MAX_REPEATS

BLOCKS = (1, 3, 10)
Sampler = Literal["random", "tpe"]

# A choice within this of the best is right: the difference would not be noticed.
CLOSE = math.log(1.02)
REPEATS = 50
# Of those that try everything the order says nothing: there the first stands for all.
SAMPLERS: tuple[Sampler, ...] = ("random", "tpe")


@dataclass(frozen=True)
class Record:
    """Measured blocks of one backend's configurations on one problem.

    Attributes:
        values: Of each tunable, those that were tried.
        bags: The log ratios of every configuration's blocks, in the order they were taken.
    """

    backend: str
    values: Mapping[str, Sequence[Value]]
    bags: Mapping[str, Sequence[float]]

    @property
    def truth(self) -> dict[str, float]:
        """Log ratio of every configuration by all of its blocks."""
        return {key: statistics.median(bag) for key, bag in self.bags.items()}


@dataclass(frozen=True)
class Policy:
    """Policy of choosing: numbers of trials and of their blocks, and of finalists and rounds of a comparison."""

    sampler: Sampler
    trials: int
    blocks: int
    finalists: int
    rounds: int


@dataclass(frozen=True)
class Replayed:
    """Outcome of a policy, on average over many replays.

    Attributes:
        wrong: Share of replays whose choice is more than 2 % slower than the best of the record.
        regret: Excess of the time of the choice over that of the best: 0.05 is 5 %.
        optimism: Excess of the true time of the choice over the time that it was chosen by.
        blocks: Blocks that one replay takes, comparison included.
    """

    policy: Policy
    wrong: float
    regret: float
    optimism: float
    blocks: float


def policies(size: int, blocks: Sequence[int] = (1, 3)) -> list[Policy]:
    """Return policies for a quarter, half and all of `size` configurations, with and without comparing the best 8."""
    return [
        Policy(sampler, trials, count, finalists, rounds)
        for trials in sorted({max(2, size // 4), max(2, size // 2), size})
        for sampler in SAMPLERS[: 2 if trials < size else 1]
        for count in blocks
        for finalists, rounds in ((1, 0), (8, 20))
    ]


def most_tried(trials: Iterable[Trial], backend: str | None = None) -> list[Trial]:
    """Return the timed trials of the problem, machine and source that a backend has tried most configurations on."""
    kinds: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        if (
            trial.measurement is not None
            and trial.phase in ("search", "comparison")
            and backend in (None, trial.backend)
        ):
            kinds.setdefault(trial.identity[:-1], []).append(trial)
    return max(kinds.values(), key=lambda group: len({trial.identity for trial in group}), default=[])


def record_of(trials: Iterable[Trial]) -> Record:
    """Return the record that the timed trials of one backend, problem, machine and source make.

    Raises:
        ValueError: They are of several kinds, or of fewer than two configurations.
    """
    timed = sorted((trial for trial in trials if trial.measurement), key=lambda trial: trial.started_at)
    bags: dict[str, list[float]] = {}
    configs: dict[str, Config] = {}
    for trial in timed:
        assert trial.measurement is not None
        key = config_key(trial.config)
        configs[key] = trial.config
        measured = trial.measurement
        bags.setdefault(key, []).extend(block.log_ratio - measured.reference_log_ratio for block in measured.clean)
    kinds = {trial.identity[:-1] for trial in timed}
    if len(kinds) != 1 or len(bags) < 2:
        raise ValueError(f"{len(bags)} configurations of {len(kinds)} kinds: a replay needs two or more of one kind.")
    names = next(iter(configs.values()))
    values = {name: sorted({config[name] for config in configs.values()}, key=str) for name in names}
    return Record(timed[0].backend, values, bags)


def replay(record: Record, policy: Policy, repeats: int = REPEATS, seed: int = 0) -> Replayed:
    """Choose `repeats` times by `policy` out of `record`, and compare the choices with its truth."""
    truth = record.truth
    best = min(truth.values())
    regrets, optimisms, taken = [], [], []
    for repeat in range(repeats):
        chosen, seen, blocks = _choose(record, policy, random.Random(f"{seed} {repeat}"), seed + repeat)
        regrets.append(truth[chosen] - best)
        optimisms.append(truth[chosen] - seen)
        taken.append(blocks)
    return Replayed(
        policy,
        wrong=sum(regret > CLOSE for regret in regrets) / repeats,
        regret=math.expm1(statistics.fmean(regrets)),
        optimism=math.expm1(statistics.fmean(optimisms)),
        blocks=statistics.fmean(taken),
    )


def _choose(record: Record, policy: Policy, rng: random.Random, seed: int) -> tuple[str, float, int]:
    """Return the configuration that one replay chooses, the log ratio it was chosen by, and the blocks it took."""
    seen: dict[str, float] = {}

    def outcome(config: Config) -> float | None:
        bag = record.bags.get(config_key(config))
        if bag is None:
            return None
        seen[config_key(config)] = _measured(bag, policy.blocks, rng)
        return seen[config_key(config)]

    simulate(record.values, outcome, min(policy.trials, len(record.bags)), policy.sampler, seed)
    if not seen:  # no proposed configuration is in the record
        seen[rng.choice(list(record.bags))] = math.inf
    blocks = policy.blocks * len(seen)
    if policy.finalists > 1:
        finalists = sorted(seen, key=lambda key: seen[key])[: policy.finalists]
        seen = {key: _measured(record.bags[key], policy.rounds, rng) for key in finalists}
        blocks += policy.rounds * len(finalists)
    chosen = min(seen, key=lambda key: seen[key])
    return chosen, seen[chosen], blocks


def _measured(bag: Sequence[float], blocks: int, rng: random.Random) -> float:
    """Return the median of `blocks` consecutive blocks of a bag, which is taken to be a ring."""
    start = rng.randrange(len(bag))
    return statistics.median(bag[(start + step) % len(bag)] for step in range(blocks))


def simulate(
    values: Mapping[str, Sequence[Value]],
    outcome: Callable[[Config], float | None],
    trials: int,
    sampler: Sampler,
    seed: int,
) -> None:
    """Ask `sampler` for `trials` configurations of these tunables, each answered by `outcome`; nothing is stored.

    An `outcome` of None is a configuration that nothing is known of; neither it nor a repetition counts.
    """
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(list(choices)) for name, choices in values.items()
    }
    told: dict[str, float | None] = {}
    with quiet_optuna():
        chosen = RandomSampler(seed=seed) if sampler == "random" else TPESampler(seed=seed, group=True)
        study = optuna.create_study(sampler=chosen)
        for _ in range(20 * trials + MAX_REPEATS):
            asked = study.ask(distributions)
            key = config_key(asked.params)
            if key not in told:
                told[key] = outcome(asked.params)
            answer = told[key]
            study.tell(asked, answer, state=TrialState.FAIL if answer is None else TrialState.COMPLETE)
            if sum(value is not None for value in told.values()) >= trials:
                return


def record_study(backend: Backend, seconds: float, folder: Path) -> None:
    """Time every configuration of `backend` in interleaved rounds beside its defaults."""
    (case,) = load_suite("vim-tiny")
    candidates = [Candidate(backend, config) for config in backend.space.configs(case.problem)]
    common.compared(case.problem, case.inputs, case.label, candidates, seconds, folder, baseline=candidates[0])


def row_of(policy: Policy, size: int) -> dict[str, object]:
    """Return a policy in words."""
    return {
        "search": "all" if policy.trials == size else policy.sampler,
        "trials": policy.trials,
        "blocks each": policy.blocks,
        "then a comparison": f"{policy.finalists} x {policy.rounds} rounds" if policy.rounds else "no",
    }


def lessons(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the defaults of `scanlab tune`, each beside its alternative."""
    compared, few = frame["then a comparison"] != "no", frame["blocks each"] == BLOCKS[0]
    partial = frame.search != "all"

    def pair(default: str, one: "pd.Series[bool]", other: "pd.Series[bool]") -> dict[str, object]:
        means = {name: frame[chosen] for name, chosen in (("with it", one), ("without", other))}
        said = {
            f"{what} {name}": f"{part[what].mean():.1%}" for what in ("wrong", "regret") for name, part in means.items()
        }
        return {"default": default, **said}

    return pd.DataFrame(
        [
            pair("the best are compared on new samples", compared, ~compared),
            pair(
                "TPE chooses where time is short, not chance",
                partial & (frame.search == "tpe"),
                frame.search == "random",
            ),
            pair("three blocks or more for each, not one", ~compared & ~few, ~compared & few),
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
        " looks that it was chosen by. Blocks: those of one replay in all"
    )
    sections = {"The defaults of `scanlab tune`, by the rows below": lessons(frame), "Every way of choosing": shown}
    common.write_page(out, __doc__, caption, {}, sections, frame)


if __name__ == "__main__":
    typer.run(main)
