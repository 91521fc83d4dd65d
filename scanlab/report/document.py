"""The report of a results folder: what is said in which order, as Markdown, CSV, pictures and one HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from scanlab.bench.records import Trial
from scanlab.contract.machine import Machine
from scanlab.errors import ResultsError
from scanlab.report import figures, page, tables
from scanlab.report.decision import TuningDecision, decisions_on
from scanlab.report.formatting import milliseconds, three_digits
from scanlab.report.select import (
    Contest,
    Placing,
    contest_of,
    contests,
    families,
    is_known,
    oldest_first,
    placings,
    select,
    slugs,
    speedup_interval,
)

FAILURES = "Configurations without numbers"
READING = (
    "Time is the median of one call, with the quartiles of all samples. The speed-up is the median over the blocks of"
    " the ratio to the reference, both taken within one block, with its 95 % bootstrap interval; fewer than six blocks"
    " cannot be that sure, and have none. The last column says"
    " where the numbers come from: from a hold-out run on fresh inputs where there was one, else from the comparison of"
    " the finalists, else from the search, where the best of many is also the luckiest. State updates are"
    " batch x dim x length x state x directions of one forward pass. The error is the largest of any tensor against"
    " float64, as a share of that tensor's largest value. Memory is what one call takes beyond what was in use before"
    " it. Building includes compiling."
)


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its files, and what it shows for those who cannot see it."""

    name: str
    figure: Figure
    alt: str


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it: text, tables of text by caption, pictures."""

    title: str
    text: str
    tables: Mapping[str, pd.DataFrame]
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Document:
    """The whole report; `files` are the CSV files by name."""

    title: str
    about: Sequence[str]
    sections: Sequence[Section]
    files: Mapping[str, str]


def write_report(
    trials: Sequence[Trial],
    machine: Machine,
    folder: Path,
    importances: Mapping[str, Mapping[str, float]] | None = None,
    decisions: Sequence[TuningDecision] = (),
) -> list[Path]:
    """Write the report of `trials` on `machine` to `folder` and return what was written, report.md first.

    importances  by backend: the share of the variation between its trials that each tunable explains
    decisions    of the tunings; those of other machines are left out
    Writes report.md, index.html (stands alone), tables/*.csv and figures/*.png and *.svg; the same bytes for the
    same trials. Trials of other machines, and stale ones, are only in tables/trials.csv. Raises ResultsError
    where no trial counts, and where the folder cannot be written.
    """
    document = compose(trials, machine, importances or {}, decisions)
    pictures = [picture for section in document.sections for picture in section.pictures]
    try:
        for name in ("tables", "figures"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        drawn = {picture.name: figures.save(picture.figure, folder / "figures", picture.name) for picture in pictures}
        texts = {folder / "report.md": markdown(document), folder / "index.html": page.html(document, drawn)}
        texts |= {folder / "tables" / name: text for name, text in document.files.items()}
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ResultsError(
            f"{folder}: cannot write the report: {error.strerror}."
            " Name a folder that you may write to and that has space."
        ) from error
    return [*texts, *(path for paths in drawn.values() for path in paths)]


def compose(
    trials: Sequence[Trial],
    machine: Machine,
    importances: Mapping[str, Mapping[str, float]],
    decisions: Sequence[TuningDecision] = (),
) -> Document:
    """Return the report of `trials` on `machine`."""
    chosen = select(trials, machine)
    if not chosen.trials:
        raise ResultsError(
            f"none of the {len(trials)} trials is of this machine ({machine.describe()}). Run `scanlab tune` first."
        )
    caption = f"{machine.describe()}; {_dates(chosen.trials)}"
    found = contests(chosen.trials)
    decided = {contest: each for contest, each in decisions_on(machine, decisions).items() if contest in found}
    deployed = {contest: each.label for contest, each in decided.items() if each.deployed and each.label}
    speedups, errors = tables.speedup_table(chosen.trials, deployed), tables.error_table(chosen.trials)
    names = slugs(found)
    sections = [_decision_section(each) for each in decided.values()]
    sections += [
        _contest_section(
            contest, members, names[contest], caption, speedups, errors, decided.get(contest), deployed.get(contest)
        )
        for contest, members in found.items()
    ]
    sections += _length_sections(chosen.trials, caption)
    importance = figures.importance_bars(importances, caption)
    if importance is not None:
        spelled = (
            f"{backend} {name} {share:.0%}" for backend, own in importances.items() for name, share in own.items()
        )
        picture = Picture("importance", importance, f"Importance of the tunables: {', '.join(spelled)}.")
        sections.append(Section("What matters", "", {}, [picture]))
    files = {"speedups.csv": speedups, "errors.csv": errors, "trials.csv": tables.trial_table(oldest_first(trials))}
    about = [f"Machine: {machine.describe()}.", f"{len(chosen.trials)} trials, {_dates(chosen.trials)}."]
    about += [f"Left out: {', '.join(chosen.left_out)}."] if chosen.left_out else []
    return Document(
        "Selective scans on this machine",
        about,
        [*sections, Section("How to read the numbers", READING, {}, [])],
        {name: tables.csv(frame) for name, frame in files.items()},
    )


def markdown(document: Document) -> str:
    """Return the report as Markdown, its pictures beside it in figures/."""
    lines = [f"# {document.title}", *document.about]
    for section in document.sections:
        lines += [f"## {section.title}", section.text]
        for picture in section.pictures:
            lines.append(f"![{picture.alt}](figures/{picture.name}.png)")
        for caption, frame in section.tables.items():
            lines += [f"### {caption}", tables.markdown(frame)]
    lines.append("The same numbers in full: " + ", ".join(f"[{name}](tables/{name})" for name in document.files) + ".")
    return "\n\n".join(line for line in lines if line) + "\n"


def _decision_section(decision: TuningDecision) -> Section:
    rows = pd.DataFrame(list(decision.rows().items()), columns=["of", "is"])
    return Section(f"Decision: {decision.contest.title}", decision.why, {"Evidence": rows}, [])


def _contest_section(
    contest: Contest,
    members: Sequence[Trial],
    name: str,
    caption: str,
    speedups: pd.DataFrame,
    errors: pd.DataFrame,
    decision: TuningDecision | None,
    deployed: str | None,
) -> Section:
    ranked = placings(members, deployed)
    searched = [trial for trial in members if trial.phase == "search"]
    said = _fastest(ranked) if decision is None else decision.why
    drawn = (
        ("speedup", figures.speedup_bars(contest, ranked, caption), f"Speed-up of every backend. {said}"),
        (
            "landscape",
            figures.landscapes(contest, searched, caption, deployed),
            "Speed-up over pairs of tunables, a heat map each.",
        ),
        ("history", figures.history(contest, searched, caption), "Best speed-up of each backend over the search."),
    )
    shown = {
        "Speed-up": tables.readable_speedups(_rows_of(speedups, contest)),
        "Errors against float64": tables.readable_errors(_rows_of(errors, contest)),
        FAILURES: tables.failure_table(members),
    }
    return Section(
        contest.title,
        said if decision is None else "",
        _not_empty(shown),
        [Picture(f"{kind}-{name}", figure, alt) for kind, figure, alt in drawn if figure is not None],
    )


def _length_sections(trials: Sequence[Trial], caption: str) -> list[Section]:
    sections = []
    for number, members in enumerate(families(trials), start=1):
        lengths = sorted({trial.problem.length for trial in members if is_known(trial)})
        text = f"{contest_of(members[0]).title}; and at lengths up to {lengths[-1]}."
        alt = f"Time of one call at lengths from {lengths[0]} to {lengths[-1]}, a line for each backend."
        picture = Picture(f"lengths-{number}", figures.length_lines(members, caption), alt)
        shown = {"Time of one call by length": tables.length_table(members), FAILURES: tables.failure_table(members)}
        sections.append(Section("Time against sequence length", text, _not_empty(shown), [picture]))
    return sections


def _fastest(ranked: Sequence[Placing]) -> str:
    """Return one sentence on the fastest backend, and on what it was timed beside."""
    first = ranked[0]
    if first.measured is None or not is_known(first.trial):
        return "No backend has numbers; the reasons are below."
    measured = first.measured
    low, high = speedup_interval(measured)
    spread = f"95 %: {three_digits(low)} to {three_digits(high)}" if low <= high else "too few blocks for an interval"
    unconfirmed = "" if first.trial.phase != "search" else " In the search: no comparison has confirmed it."
    return (
        f"Fastest: {first.trial.label}, {milliseconds(measured.median_ms)} a call, {three_digits(measured.speedup)}"
        f" times as fast as {first.trial.reference_label} ({spread}), which took"
        f" {milliseconds(measured.reference_median_ms)} in the same blocks.{unconfirmed}"
    )


def _not_empty(frames: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    return {caption: frame for caption, frame in frames.items() if len(frame)}


def _rows_of(frame: pd.DataFrame, contest: Contest) -> pd.DataFrame:
    if not len(frame):
        return frame
    return frame[(frame["problem"] == contest.problem.key) & (frame["inputs"] == contest.inputs_label)]


def _dates(trials: Iterable[Trial]) -> str:
    """Return the days, in UTC, on which `trials` were measured."""
    days = sorted({datetime.fromtimestamp(trial.started_at, UTC).date().isoformat() for trial in trials})
    return f"measured on {days[0]}" if len(days) == 1 else f"measured from {days[0]} to {days[-1]}"
