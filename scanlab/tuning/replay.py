"""A recorded search once more, with its recorded noise: how often would another way of choosing have chosen wrong?

Every configuration of the record is a bag of blocks, each a paired ratio that was really measured. A replayed
trial draws consecutive blocks from its bag, so that what drifted in the record drifts in the replay. The truth
is what all blocks of a configuration say together. Finalists draw apart, where in a real race they share their
rounds: what a race gains by that is not seen here, so that the figures are on the careful side.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from scanlab.bench.records import Trial
from scanlab.contract.space import Config, Value, config_key
from scanlab.tuning.fleet.storage import quiet_optuna
from scanlab.tuning.search import MAX_REPEATS

Sampler = Literal["random", "tpe"]

# A choice within this of the best is right: nobody would notice the difference.
CLOSE = math.log(1.02)
REPEATS = 50
# Of those that try everything the order says nothing: there the first stands for all.
SAMPLERS: tuple[Sampler, ...] = ("random", "tpe")


@dataclass(frozen=True)
class Record:
    """What is known of one backend's space on one problem.

    values  of each tunable, those that were tried
    bags    the log ratios of every configuration's blocks, in the order they were taken
    """

    backend: str
    values: Mapping[str, Sequence[Value]]
    bags: Mapping[str, Sequence[float]]

    @property
    def truth(self) -> dict[str, float]:
        """The log ratio of every configuration by all of its blocks."""
        return {key: statistics.median(bag) for key, bag in self.bags.items()}


@dataclass(frozen=True)
class Policy:
    """A way of choosing: so many trials of so many blocks, and a race of so many finalists over so many rounds."""

    sampler: Sampler
    trials: int
    blocks: int
    finalists: int
    rounds: int


@dataclass(frozen=True)
class Replayed:
    """How a policy did over many replays.

    wrong      share of replays whose choice is more than 2 % slower than the best of the record
    regret     how much slower the choice is than the best, on average: 0.05 is 5 %
    optimism   how much faster than the truth the number looks that the choice was made by, on average
    blocks     blocks that one replay takes, race included, on average
    """

    policy: Policy
    wrong: float
    regret: float
    optimism: float
    blocks: float


def policies(size: int, blocks: Sequence[int] = (1, 3)) -> list[Policy]:
    """A quarter, half and all of `size` configurations, by each sampler, with and without a race of the best 8."""
    return [
        Policy(sampler, trials, count, finalists, rounds)
        for trials in sorted({max(2, size // 4), max(2, size // 2), size})
        for sampler in SAMPLERS[: 2 if trials < size else 1]
        for count in blocks
        for finalists, rounds in ((1, 0), (8, 20))
    ]


def most_tried(trials: Iterable[Trial], backend: str | None = None) -> list[Trial]:
    """The timed trials of the problem, machine and source that one backend has tried most configurations on."""
    kinds: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        if trial.measurement is not None and trial.phase in ("search", "race") and backend in (None, trial.backend):
            kinds.setdefault(trial.identity[:-1], []).append(trial)
    return max(kinds.values(), key=lambda group: len({trial.identity for trial in group}), default=[])


def record_of(trials: Iterable[Trial]) -> Record:
    """The record that the timed trials of one backend, problem, machine and source make.

    Raises ValueError where they are of several, or where there are fewer than two configurations.
    """
    timed = sorted((trial for trial in trials if trial.measurement), key=lambda trial: trial.started_at)
    bags: dict[str, list[float]] = {}
    configs: dict[str, Config] = {}
    for trial in timed:
        assert trial.measurement is not None
        key = config_key(trial.config)
        configs[key] = trial.config
        bags.setdefault(key, []).extend(trial.measurement.log_ratios)
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
    """The configuration that one replay chooses, the log ratio it was chosen by, and the blocks it took."""
    seen: dict[str, float] = {}

    def outcome(config: Config) -> float | None:
        bag = record.bags.get(config_key(config))
        if bag is None:
            return None
        seen[config_key(config)] = _measured(bag, policy.blocks, rng)
        return seen[config_key(config)]

    simulate(record.values, outcome, min(policy.trials, len(record.bags)), policy.sampler, seed)
    if not seen:  # nothing of what was proposed is in the record
        seen[rng.choice(list(record.bags))] = math.inf
    blocks = policy.blocks * len(seen)
    if policy.finalists > 1:
        finalists = sorted(seen, key=lambda key: seen[key])[: policy.finalists]
        seen = {key: _measured(record.bags[key], policy.rounds, rng) for key in finalists}
        blocks += policy.rounds * len(finalists)
    chosen = min(seen, key=lambda key: seen[key])
    return chosen, seen[chosen], blocks


def _measured(bag: Sequence[float], blocks: int, rng: random.Random) -> float:
    """The median of so many consecutive blocks of a bag, which is taken to be a ring."""
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
