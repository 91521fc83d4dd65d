"""Select the trials that count: one machine, the newest sources, and for each backend the trial of its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scanlab.bench.records import Trial
from scanlab.bench.samples import Measurement
from scanlab.bench.stats import Interval
from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.machine import Machine

# Phases whose trials compare backends, the most telling first. The numbers of a backend come from the trial with the
# strongest evidence: a hold-out or a comparison of too few clean rounds counts no more than a search.
COMPARING = ("holdout", "comparison", "search")


class Contest(NamedTuple):
    """Problem and origin of its inputs, on which backends are compared."""

    problem: Problem
    inputs_label: str

    @property
    def spelled(self) -> str:
        """The problem in words: its sizes, and the options that differ from the defaults."""
        return self._words()

    @property
    def spelled_for_all_lengths(self) -> str:
        """The problem in words, without the size that a sweep varies."""
        return self._words(left_out=self.problem.swept)

    def _words(self, left_out: str | None = None) -> str:
        sizes, options = _spelled(self.problem)
        problem = ", ".join((*(f"{name} {size}" for name, size in sizes.items() if name != left_out), *options))
        op = "" if self.problem.op == registry.DEFAULT_OP else f"{self.problem.op}: "
        return op + problem

    @property
    def title(self) -> str:
        """The problem in words, and its inputs."""
        return f"{self.spelled}; inputs {self.inputs_label}"


@dataclass(frozen=True)
class Placing:
    """Place of one backend in a contest.

    Attributes:
        trial: The one that its numbers come from, or the reason why it has none.
        tried: Number of configurations that were tried.
        failed: Number of those that were wrong, rejected or crashed.
        deployed: Whether `trial` is of the configuration that is deployed.
    """

    trial: Trial
    tried: int
    failed: int
    deployed: bool = False

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return self.trial.backend

    @property
    def measured(self) -> Measurement | None:
        """The measurement, or None if the backend has none that is verified."""
        return self.trial.measurement


class Selection(NamedTuple):
    """The trials that count, and a sentence for each kind of trial that was left out."""

    trials: tuple[Trial, ...]
    left_out: tuple[str, ...]


def subject(trials: Sequence[Trial], here: Machine) -> Machine:
    """Return the machine that a report of `trials` is about: `here` where it has some, else that of the newest."""
    ids = (here.silicon_id, here.software_id)
    if any((trial.machine.silicon_id, trial.machine.software_id) == ids for trial in trials) or not trials:
        return here
    return oldest_first(trials)[-1].machine


def select(trials: Iterable[Trial], machine: Machine) -> Selection:
    """Return the trials of `machine` that are not stale and can be compared, oldest first.

    A trial is stale where the same backend was tried later in the same contest with other sources, and where the
    same configuration was tried later in the same phase: the last try counts, not the luckiest. Ratios to
    different references cannot be compared: those to the reference loop count, or else to the reference used last.
    """
    ordered = oldest_first(trials)
    ids = (machine.silicon_id, machine.software_id)
    here = [trial for trial in ordered if (trial.machine.silicon_id, trial.machine.software_id) == ids]
    sources = {(contest_of(trial), trial.backend): trial.source_hash for trial in here}
    fresh = [trial for trial in here if sources[contest_of(trial), trial.backend] == trial.source_hash]
    references: dict[Contest, str] = {}
    for trial in sorted(fresh, key=lambda trial: trial.reference_label.startswith("reference")):
        if trial.measurement is not None:
            references[contest_of(trial)] = trial.reference_label
    comparable = [trial for trial in fresh if trial.reference_label in ("", references.get(contest_of(trial)))]
    last = {(trial.phase, *trial.identity): trial.id for trial in comparable}
    kept = [trial for trial in comparable if last[trial.phase, *trial.identity] == trial.id]
    counts = (
        (len(ordered) - len(here), "from another machine or with other software"),
        (len(here) - len(fresh), "of sources that have changed since"),
        (len(fresh) - len(comparable), "beside another reference"),
        (len(comparable) - len(kept), "repeated later"),
    )
    return Selection(tuple(kept), tuple(f"{count} {why}" for count, why in counts if count))


def is_known(trial: Trial) -> bool:
    """Return whether `trial` was measured in enough clean rounds for its numbers to mean something."""
    return trial.measurement is not None and trial.state != "disturbed"


def speedup_interval(measured: Measurement) -> Interval:
    """Return the 95 % interval of the speed-up; NaN if there are too few blocks to know it."""
    return measured.speedup_interval if measured.speedup_interval.known else Interval(math.nan, math.nan)


def reference_of(trials: Iterable[Trial]) -> str:
    """Return the backend that speed-ups are over: that of the first trial with numbers."""
    labels = (trial.reference_label.partition(" ")[0] for trial in trials if trial.measurement is not None)
    return next(labels, "the reference")


def oldest_first(trials: Iterable[Trial]) -> list[Trial]:
    """Return `trials` in one order, independent of theirs."""
    return sorted(trials, key=lambda trial: (trial.started_at, trial.id))


def contest_of(trial: Trial) -> Contest:
    """Return the contest that `trial` was about."""
    return Contest(trial.problem, trial.inputs_label)


def slugs(found: Iterable[Contest]) -> dict[Contest, str]:
    """Name the files of each contest, such as "1x384x197x16-bidirectional-dim_last"; numbered where two agree."""
    names: dict[Contest, str] = {}
    for contest in found:
        sizes, options = _spelled(contest.problem)
        op = () if contest.problem.op == registry.DEFAULT_OP else (contest.problem.op,)
        name = "-".join((*op, "x".join(sizes.values()), *options)).replace(" ", "_")
        taken = sum(other.problem == contest.problem for other in names)
        names[contest] = f"{name}-{taken + 1}" if taken else name
    return names


def contests(trials: Iterable[Trial]) -> dict[Contest, tuple[Trial, ...]]:
    """Return the trials that compare backends, by contest, in the order in which the contests were first tried."""
    found: dict[Contest, list[Trial]] = {}
    for trial in trials:
        if trial.phase in COMPARING:
            found.setdefault(contest_of(trial), []).append(trial)
    return {contest: tuple(members) for contest, members in found.items()}


def families(trials: Iterable[Trial]) -> list[tuple[Trial, ...]]:
    """Return the trials of time against length, those whose problems differ in nothing else together.

    A family known at fewer than two lengths is left out: it shows nothing.
    """
    found: dict[Problem, list[Trial]] = {}
    for trial in trials:
        if trial.phase == "lengths":
            found.setdefault(trial.problem.replace(**{trial.problem.swept: 1}), []).append(trial)
    measured = {problem: [trial for trial in members if is_known(trial)] for problem, members in found.items()}
    return [
        tuple(members) for problem, members in found.items() if len({trial.problem for trial in measured[problem]}) > 1
    ]


def unmeasured_lengths(family: Sequence[Trial], trials: Iterable[Trial]) -> str:
    """Return the backends without times at some lengths, and which, such as "triton; chunked above 512".

    Args:
        family: Trials of time against length, as `families` returns them.
        trials: All trials that count; those of other problems are left out.
    """
    first = family[0].problem
    wanted = first.replace(**{first.swept: 1})
    alike = [each for each in trials if each.problem.op == wanted.op]
    backends = dict.fromkeys(each.backend for each in alike if each.problem.replace(**{wanted.swept: 1}) == wanted)
    known = {
        backend: {each.problem.swept_size for each in family if each.backend == backend and is_known(each)}
        for backend in backends
    }
    lengths = sorted(set().union(*known.values()))
    said = []
    for backend, own in known.items():
        missing = [length for length in lengths if length not in own]
        if not own:
            said.append(backend)
        elif missing and missing[0] > max(own):
            said.append(f"{backend} above {max(own)}")
        elif missing:
            said.append(f"{backend} at {', '.join(map(str, missing))}")
    return "; ".join(said)


def placings(trials: Sequence[Trial], deployed: str | None = None) -> list[Placing]:
    """Return every backend among the trials of one contest: the fastest first, then those without numbers by name.

    Args:
        trials: Trials of one contest.
        deployed: Label of the deployed configuration, which its backend is shown with.
    """
    found = []
    for backend in {trial.backend for trial in trials}:
        mine = [trial for trial in trials if trial.backend == backend]
        failed = {trial.identity for trial in mine if trial.measurement is None}
        own = [trial for trial in mine if trial.label == deployed]
        tried = len({trial.identity for trial in mine})
        found.append(Placing(best(own or mine), tried, len(failed), deployed=bool(own)))
    return sorted(found, key=lambda placing: (_rank(placing.trial)[-1], placing.measured is None, placing.backend))


def best(trials: Sequence[Trial]) -> Trial:
    """Return the trial that a backend's numbers come from; where none was measured, the last one tried."""
    measured = [trial for trial in trials if trial.measurement is not None]
    return min(measured, key=_rank) if measured else max(trials, key=lambda trial: trial.started_at)


def _rank(trial: Trial) -> tuple[bool, int, bool, int, bool, float]:
    measured = trial.measurement if is_known(trial) else None
    is_sure = measured is not None and measured.log_ratio_interval.known
    phase = COMPARING.index(trial.phase) if trial.phase in COMPARING else len(COMPARING)
    ratio = math.inf if measured is None else measured.log_ratio
    return measured is None, -trial.evidence, not is_sure, phase, trial.state != "ok", ratio


def _spelled(problem: Problem) -> tuple[dict[str, str], list[str]]:
    """Return the sizes by name, and the words for options that differ from the defaults."""
    settings = dict(part.split("=") for part in problem.key.split(","))
    sizes = {name: settings.pop(name) for name in problem.sizes if name in settings and name != "groups"}
    words = {"true": "{name}", "false": "no {name}"}
    options = []
    for name, value in settings.items():
        bare = f"{name} {value}" if value[:1].isdigit() else value  # a number alone says nothing
        options.append(words.get(value, bare).format(name=name.removeprefix("has_")))
    return sizes, options
