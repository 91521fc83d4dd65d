"""Compare two results folders: two machines, or one machine before and after a change."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from scanlab.bench.records import Trial
from scanlab.bench.samples import Measurement
from scanlab.bench.stats import Interval, interval_of_median
from scanlab.contract.machine import Machine
from scanlab.errors import ResultsError
from scanlab.report import figures, tables
from scanlab.report.decision import TuningDecision, decisions_on
from scanlab.report.formatting import TO, milliseconds, percent, three_digits, times
from scanlab.report.select import Contest, contest_of, contests, is_known, placings, select, slugs, subject
from scanlab.report.write import Fact, Picture, Section, write_pages

LEGEND = (
    "In brackets: the speed-up over the reference of the same run. Where it stands, it is what is compared and not the"
    " time, because what slows the whole machine slows the reference too."
)
# Smaller differences are not reported where the noise of neither side was measured.
MIN_DIFFERENCE = math.log(1.02)


@dataclass(frozen=True)
class Side:
    """One of the two results: its name in the report, its machine, and the trials and decisions of that machine."""

    name: str
    machine: Machine
    contests: Mapping[Contest, Sequence[Trial]]
    decisions: Mapping[Contest, TuningDecision]

    @classmethod
    def of(cls, name: str, trials: Sequence[Trial], decisions: Sequence[TuningDecision], here: Machine) -> Side:
        """Return the trials that count, of this machine or else of the one that was measured last."""
        machine = subject(trials, here)
        return cls(name, machine, contests(select(trials, machine).trials), decisions_on(machine, decisions))


@dataclass(frozen=True)
class Change:
    """Best configurations of one backend in both results, and whether they differ by more than the noise.

    Attributes:
        contest: Problem and inputs, the same in both.
        before: Trial of the first result; None if the backend has no numbers there.
        after: The same for the second.
        log_ratio: log(time after / time before); NaN if a side is missing.
        interval: Interval of `log_ratio`, at 95 % or more.
        noise: Differences up to this are noise, as log ratio.
    """

    contest: Contest
    backend: str
    before: Trial | None
    after: Trial | None
    log_ratio: float
    interval: Interval
    noise: float

    @property
    def by_speedup(self) -> bool:
        """True if speed-ups are compared, and not times."""
        return self.before is not None and self.after is not None and _is_by_speedup(self.before, self.after)

    @property
    def is_control(self) -> bool:
        """True if machine, source and configuration are the same, so that differences are those between runs."""
        return self.before is not None and self.after is not None and self.before.identity == self.after.identity

    @property
    def verdict(self) -> str:
        """Direction of the change, "no difference shown", or on which side there are no numbers."""
        if self.before is None or self.after is None:
            return "not measured before" if self.before is None else "not measured after"
        if not self.interval.known:
            return "too few rounds to tell"
        if abs(self.log_ratio) <= self.noise or self.interval.low <= 0.0 <= self.interval.high:
            return "no difference shown"
        return "faster" if self.log_ratio < 0 else "slower"

    @property
    def ratio_text(self) -> str:
        """Ratio of the speeds, the second to the first, with its interval."""
        if math.isnan(self.log_ratio):
            return ""
        low, high = math.exp(-self.interval.high), math.exp(-self.interval.low)
        spread = f" ({three_digits(low)} to {three_digits(high)})"
        return three_digits(math.exp(-self.log_ratio)) + (spread if self.interval.known else "")


def compare(before: Side, after: Side) -> list[Change]:
    """Return the change of every backend on every problem that both results have.

    On one kind of silicon and beside the same reference, speed-ups are compared: a disturbance of the whole machine
    cancels out. Otherwise times are compared. Backends of which nothing changed are controls: their difference is
    noise.

    Raises:
        ResultsError: If they have no problem in common.
    """
    common = [contest for contest in before.contests if contest in after.contests]
    if not common:
        raise ResultsError(
            f"{before.name} and {after.name} have no problem with the same inputs in common: nothing can be compared."
            " Tune both for the same --problem or --suite."
        )
    changes = []
    for contest in common:
        sides = [_measured(side.contests[contest], side.decisions.get(contest)) for side in (before, after)]
        floors = [side.decisions[contest].noise_floor for side in (before, after) if contest in side.decisions]
        noise = max(math.log1p(floor or 0.0) for floor in (*floors, math.expm1(MIN_DIFFERENCE)))
        own = []
        for backend in dict.fromkeys([*sides[1], *sides[0]]):
            one, other = sides[0].get(backend), sides[1].get(backend)
            ratio, interval = _difference(one, other) if one and other else (math.nan, Interval(-math.inf, math.inf))
            own.append(Change(contest, backend, one, other, ratio, interval, noise))
        controls = [abs(each.log_ratio) for each in own if each.is_control]
        changes += [replace(each, noise=max([noise, *controls])) for each in own]
    return changes


def change_of_fastest(changes: Sequence[Change]) -> Change | None:
    """Return the change from the fastest backend of the first result to that of the second, which may be another.

    The changes are those of one contest. None is returned where one result has no times.
    """
    old = [each.before for each in changes if each.before is not None]
    new = [each.after for each in changes if each.after is not None]
    if not old or not new:
        return None
    before, after = min(old, key=_median), min(new, key=_median)
    return Change(changes[0].contest, after.backend, before, after, *_difference(before, after), changes[0].noise)


def headline(changes: Sequence[Change], before: Side, after: Side) -> str:
    """Return the change of the fastest backend in a line; the changes are those of one contest."""
    found = change_of_fastest(changes)
    if found is None:
        return "Nothing to compare"
    if found.verdict in ("faster", "slower"):
        return f"{after.name} is {times(math.exp(-found.log_ratio))} as fast as {before.name}"
    return found.verdict[0].upper() + found.verdict[1:]


def facts(changes: Sequence[Change], before: Side, after: Side) -> list[Fact]:
    """Return the fastest of both results, the certainty of the change, and the number of backends by verdict."""
    found, shown = change_of_fastest(changes), []
    if found is not None:
        for side, trial in ((before, found.before), (after, found.after)):
            shown.append(Fact(f"Fastest in {side.name}", milliseconds(_median(trial)), _why_fast(trial, side)))
        _, _, interval = found.ratio_text.partition(" ")
        sure = interval.strip("()").replace(" to ", f" {TO} ") or "unknown"
        noise = f"95 % interval, times as fast; differences up to {percent(math.expm1(found.noise))} are noise"
        shown.append(Fact("How sure", sure, noise))
    by_verdict: dict[str, list[str]] = {}
    for each in changes:
        name = each.verdict if each.before and each.after else "not measured in both"
        by_verdict.setdefault(name, []).append(f"{each.backend} {each.ratio_text.partition(' ')[0]}".strip())
    for verdict, names in by_verdict.items():
        count = f"{len(names)} of {len(changes)} backends"
        shown.append(Fact(verdict[0].upper() + verdict[1:], count, ", ".join(names)))
    return shown


def summary(changes: Sequence[Change], before: Side, after: Side) -> str:
    """Return one sentence on the changes beyond the noise."""
    parts = []
    for verdict in ("faster", "slower"):
        found = [f"{each.backend} {each.ratio_text.partition(' ')[0]}" for each in changes if each.verdict == verdict]
        if found:
            parts.append(f"{verdict}, times as fast: {', '.join(found)}")
    rest = Counter(each.verdict for each in changes if each.verdict not in ("faster", "slower"))
    parts += [f"{verdict} for {count} of {len(changes)}" for verdict, count in rest.items()]
    return f"{after.name} against {before.name}: {'; '.join(parts)}."


def named(frame: pd.DataFrame, before: Side, after: Side) -> pd.DataFrame:
    """Return a `change_table` whose columns of times have the names of the two results, for people."""
    return frame.rename(columns={"before": f"before: {before.name}", "after": f"after: {after.name}"})


def change_table(changes: Sequence[Change]) -> pd.DataFrame:
    """Return a row of text for each change."""
    return pd.DataFrame(
        {
            "backend": each.backend,
            "before": _measured_text(each.before, each.by_speedup),
            "after": _measured_text(each.after, each.by_speedup),
            "times as fast": each.ratio_text,
            "verdict": each.verdict,
            "configuration before": _config(each.before),
            "configuration after": "the same" if _config(each.before) == _config(each.after) else _config(each.after),
            "source": _source(each),
        }
        for each in changes
    )


def environment_table(before: Side, after: Side) -> pd.DataFrame:
    """Return the differences between the two machines and their software; empty if there are none."""
    facts = []
    for side in (before, after):
        silicon, software = side.machine.silicon, side.machine.software
        facts.append(
            {
                "processor": silicon.model_name,
                "vectors": silicon.instruction_set,
                "usable CPUs": str(silicon.usable_cpus),
                "caches": ", ".join(silicon.caches),
                "GPUs": ", ".join(silicon.gpus) or "none",
                "scanlab": software.scanlab,
                "torch": software.torch,
                "Python": software.python,
                "compiler": software.compiler,
                "system": software.system,
            }
        )
    one, other = facts
    rows = [{"of": name, "before": one[name], "after": other[name]} for name in one if one[name] != other[name]]
    return pd.DataFrame(rows)


def write_comparison(changes: Sequence[Change], before: Side, after: Side, folder: Path) -> list[Path]:
    """Write the comparison of two results: report.md, index.html, tables/changes.csv and figures.

    Raises:
        ResultsError: If the folder cannot be written.
    """
    names = slugs(dict.fromkeys(each.contest for each in changes))
    caption = f"Before: {before.machine.describe()}. After: {after.machine.describe()}."
    sections = []
    for contest, name in names.items():
        own = [each for each in changes if each.contest == contest]
        drawn = figures.change_dots(
            contest,
            {each.backend: (_median(each.before), _median(each.after), each.verdict) for each in own},
            (before.name, after.name),
            caption,
        )
        pictures = [Picture(f"change-{name}", drawn, "Times before and after.")] if drawn is not None else []
        decided = {side.name: side.decisions[contest].why for side in (before, after) if contest in side.decisions}
        shown = {"Changes": named(change_table(own), before, after)}
        if decided:
            shown["Decisions"] = pd.DataFrame(list(decided.items()), columns=["of", "is"])
        sections.append(
            Section(
                contest.title,
                summary(own, before, after),
                shown,
                pictures,
                headline(own, before, after),
                facts(own, before, after),
            )
        )
    different = environment_table(before, after)
    if len(different):
        sections.append(Section("Machine and software", "", {"Differences": different}, []))
    about = [
        f"Before: {before.name}, {before.machine.describe()}.",
        f"After: {after.name}, {after.machine.describe()}.",
        *([LEGEND] if any(each.by_speedup for each in changes) else []),
    ]
    problems = pd.DataFrame(
        {"problem": each.contest.problem.key, "inputs": each.contest.inputs_label} for each in changes
    )
    files = {"changes.csv": pd.concat([problems, change_table(changes)], axis=1)}
    return write_pages("comparison", folder, f"{after.name} against {before.name}", about, sections, files)


def _measured(trials: Sequence[Trial], decision: TuningDecision | None) -> dict[str, Trial]:
    """Return the trial of each backend that has numbers: of the deployed configuration, or else of the best."""
    deployed = decision.label if decision is not None and decision.deployed else None
    return {each.backend: each.trial for each in placings(trials, deployed) if is_known(each.trial)}


def _is_by_speedup(before: Trial, after: Trial) -> bool:
    same_silicon = before.machine.silicon_id == after.machine.silicon_id
    return same_silicon and before.reference_label == after.reference_label


def _difference(before: Trial, after: Trial) -> tuple[float, Interval]:
    by_speedup = _is_by_speedup(before, after)
    sides = []
    for trial in (before, after):
        measured = trial.measurement
        assert measured is not None
        if by_speedup:
            sides.append((measured.log_ratio, measured.log_ratio_interval))
        else:
            sides.append(_log_time(measured))
    (old, old_interval), (new, new_interval) = sides
    ratio = new - old
    if not (old_interval.known and new_interval.known):
        return ratio, Interval(-math.inf, math.inf)
    # The two were measured independently: their half-widths add in squares.
    low = ratio - math.hypot(new - new_interval.low, old_interval.high - old)
    return ratio, Interval(low, ratio + math.hypot(new_interval.high - new, old - old_interval.low))


def _log_time(measured: Measurement) -> tuple[float, Interval]:
    """Return the log of the median time of a block, and its interval."""
    by_process: dict[int, list[float]] = {}
    for block in measured.clean:
        by_process.setdefault(block.process, []).append(math.log(statistics.median(block.candidate_ns)))
    values = list(by_process.values())
    return statistics.median(value for own in values for value in own), interval_of_median(values)


def _median(trial: Trial | None) -> float:
    return trial.measurement.median_ms if trial is not None and trial.measurement is not None else math.nan


def _measured_text(trial: Trial | None, by_speedup: bool) -> str:
    """Return the time of a trial, and in brackets the speed-up where that is what is compared."""
    if trial is None or trial.measurement is None:
        return ""
    speedup = f" ({times(trial.measurement.speedup)})" if by_speedup else ""
    return milliseconds(_median(trial)) + speedup


def _why_fast(trial: Trial | None, side: Side) -> str:
    """Return backend and configuration, and its share of the roofline where that was determined."""
    if trial is None:
        return ""
    decision = side.decisions.get(contest_of(trial))
    share = decision.attainable_share if decision is not None and decision.label == trial.label else None
    return f"{trial.backend} {_config(trial)}".strip() + (
        "" if share is None else f"; {percent(share)} of the roofline"
    )


def _config(trial: Trial | None) -> str:
    return "" if trial is None else tables.config_text(trial.config)


def _source(change: Change) -> str:
    if change.before is None or change.after is None:
        return ""
    return "the same" if change.before.source_hash == change.after.source_hash else "changed"
