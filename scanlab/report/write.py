"""Write the report of a results folder: one offline HTML page, Markdown, figures and tables."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure

from scanlab.bench.records import Trial, spelled_state
from scanlab.contract.machine import Machine
from scanlab.errors import ResultsError
from scanlab.report import figures, search_figures, tables
from scanlab.report.breakdown import ModelBreakdown, breakdown_bars, dtype_table, op_table
from scanlab.report.decision import TuningDecision, decisions_on
from scanlab.report.formatting import between, milliseconds, percent, three_digits, times
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
    unmeasured_lengths,
)
from scanlab.report.style import FAINT, INK, LOOKS, RULE, look

FAILURES = "Configurations without numbers"
IMPORTANCE = (
    "The share of the variation between a backend's trials that each of its tunables explains, by functional analysis"
    " of variance: a tunable of small importance may stay at its default."
)
# Colours of the figures that follow the page into its dark scheme, by the name of their variable in page.css.
PAGE_COLOURS = {INK: "ink", LOOKS["reference"].colour: "ink", FAINT: "faint", RULE: "rule", "#ffffff": "paper"}


class Picture(NamedTuple):
    """A figure, the name of its files, and its description for those who cannot see it."""

    name: str
    figure: Figure
    alt: str


class Fact(NamedTuple):
    """Headline fact: its name, its value in a word, and the rest of it."""

    name: str
    value: str
    detail: str


class RankingRow(NamedTuple):
    """A backend in the chart at the top of the page; positions are percentages of the width of the chart."""

    backend: str
    detail: str
    colour: str
    value: str
    interval: str
    width: float
    low: float
    high: float


@dataclass(frozen=True)
class Section:
    """A heading and its content; facts and ranking are those of a comparison of backends."""

    title: str
    text: str
    tables: Mapping[str, pd.DataFrame]
    pictures: Sequence[Picture]
    headline: str = ""
    facts: Sequence[Fact] = ()
    ranking: Sequence[RankingRow] = ()
    reference: str = ""


def write_report(
    trials: Sequence[Trial],
    machine: Machine,
    folder: Path,
    importances: Mapping[str, Mapping[str, float]] | None = None,
    decisions: Sequence[TuningDecision] = (),
    breakdowns: Sequence[ModelBreakdown] = (),
) -> list[Path]:
    """Write the report of the trials of one machine: report.md, index.html, tables/*.csv, figures/*.png and *.svg.

    The page stands alone. The same trials give the same bytes. Trials of other machines, and stale ones, are only in
    tables/trials.csv.

    Args:
        trials: All records of a results folder.
        machine: The machine that the report is about.
        folder: Where the report goes.
        importances: By backend, the share of the variation between its trials that each tunable explains.
        decisions: Decisions of the tunings; those of other machines are left out.
        breakdowns: Breakdowns of the models that were tuned on this machine.

    Returns:
        The paths of the files, report.md first.

    Raises:
        ResultsError: If no trial counts, or the folder cannot be written.
    """
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
    of_models = {contest.problem.key: each for contest, each in decided.items()}
    sections = [
        _breakdown_section(each, number, caption, of_models.get(each.problem)) for number, each in enumerate(breakdowns)
    ]
    for contest, name in slugs(found).items():
        own = tuple(frame[_is_of(frame, contest)] for frame in (speedups, errors))
        sections.append(_contest_section(contest, found[contest], name, caption, own, decided.get(contest)))
    sections += _length_sections(chosen.trials, caption)
    importance = search_figures.importance_bars(importances or {}, caption)
    if importance is not None:
        alt = "; ".join(
            f"{backend}: {', '.join(f'{name} {percent(share)}' for name, share in shares.items())}"
            for backend, shares in (importances or {}).items()
        )
        sections.append(
            Section("Importance of the tunables", IMPORTANCE, {}, [Picture("importance", importance, f"{alt}.")])
        )
    about = [f"{len(chosen.trials)} trials, {_dates(chosen.trials)}.", f"Machine: {machine.describe()}."]
    about += [f"Left out: {', '.join(chosen.left_out)}."] if chosen.left_out else []
    files = {"speedups.csv": speedups, "errors.csv": errors, "trials.csv": tables.trial_table(oldest_first(trials))}
    return write_pages("report", folder, "Ops of state-space models on this machine", about, sections, files)


def write_pages(
    template: str,
    folder: Path,
    title: str,
    about: Sequence[str],
    sections: Sequence[Section],
    files: Mapping[str, pd.DataFrame],
) -> list[Path]:
    """Write report.md and index.html from the templates of that name, with their figures and CSV tables.

    Raises:
        ResultsError: If the folder cannot be written.
    """
    csvs = {name: tables.csv(frame) for name, frame in files.items()}
    pages = Environment(
        loader=PackageLoader("scanlab.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"markdown": tables.markdown, "numeric": tables.numeric, "breakable": tables.breakable}
    try:
        for name in ("tables", "figures"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        drawn = {
            picture.name: figures.save(picture.figure, folder / "figures", picture.name)
            for section in sections
            for picture in section.pictures
        }
        context: dict[str, Any] = {"title": title, "about": about, "sections": sections, "csvs": csvs}
        context["svgs"] = {name: _inline_svg(svg) for name, (_, svg) in drawn.items()}
        texts = {
            folder / "report.md": re.sub(r"\n{3,}", "\n\n", pages.get_template(f"{template}.md").render(context)),
            folder / "index.html": pages.get_template(f"{template}.html").render(context),
            **{folder / "tables" / name: text for name, text in csvs.items()},
        }
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ResultsError(
            f"{folder}: cannot write the report: {error.strerror}."
            " Name a folder that you may write to and that has space."
        ) from error
    return [*texts, *(path for paths in drawn.values() for path in paths)]


def _breakdown_section(
    breakdown: ModelBreakdown, number: int, caption: str, decision: TuningDecision | None
) -> Section:
    alt = "; ".join(f"{each.op} {each.before_ms:.3g} ms, then {each.after_ms:.3g} ms" for each in breakdown.ops)
    picture = Picture(f"breakdown-{number}", breakdown_bars(breakdown, caption), alt)
    frames = {"Ops": op_table(breakdown), "Dtypes": dtype_table(breakdown)}
    facts = [Fact("One pass", milliseconds(breakdown.after_ms), f"{milliseconds(breakdown.before_ms)} by the defaults")]
    facts += _decision_facts(decision) if decision is not None else []
    if breakdown.products_ms is not None:
        over = times(breakdown.after_ms / breakdown.products_ms)
        detail = f"as torch computes them: the pass takes {over} as long"
        facts.append(Fact("Its matrix products alone", milliseconds(breakdown.products_ms), detail))
    title = breakdown.problem.replace("model=", "").replace(",", ", ").replace("=", " ")
    headline = f"{title.partition(',')[0]} is {times(breakdown.before_ms / breakdown.after_ms)} as fast as the defaults"
    return Section(f"Model {title}", breakdown.why, frames, [picture], headline, facts)


def _contest_section(
    contest: Contest,
    members: Sequence[Trial],
    name: str,
    caption: str,
    own: tuple[pd.DataFrame, ...],
    decision: TuningDecision | None,
) -> Section:
    deployed = decision.label if decision is not None and decision.deployed else None
    ranked = placings(members, deployed)
    searched = [trial for trial in members if trial.phase == "search"]
    text = fastest(ranked) if decision is None else decision.why
    drawn = (
        ("speedup", figures.speedup_bars(contest, ranked, caption), f"Speed-up of every backend. {text}"),
        ("accuracy", figures.accuracy(contest, members, caption), "Time of one call against its error."),
        (
            "landscape",
            search_figures.landscapes(
                contest, searched, caption, {placing.backend: placing.trial for placing in ranked}
            ),
            "Speed-up over pairs of tunables, a heat map each.",
        ),
        ("history", search_figures.history(contest, searched, caption), "Best speed-up over the time of the search."),
    )
    shown = {
        "Decision": pd.DataFrame(list((decision.rows() if decision is not None else {}).items()), columns=["of", "is"]),
        "Speed-up": tables.readable_speedups(own[0]),
        "Errors against float64": tables.readable_errors(own[1]),
        FAILURES: tables.failure_table(members),
    }
    return Section(
        contest.title,
        text,
        {caption: frame for caption, frame in shown.items() if len(frame)},
        [Picture(f"{kind}-{name}", figure, alt) for kind, figure, alt in drawn if figure is not None],
        _headline(ranked, decision),
        _facts(ranked, decision),
        _ranking_rows(ranked),
        next((placing.trial.reference_label for placing in ranked if placing.measured), ""),
    )


def _length_sections(trials: Sequence[Trial], caption: str) -> list[Section]:
    sections = []
    for number, members in enumerate(families(trials), start=1):
        lengths = sorted({trial.problem.swept_size for trial in members if is_known(trial)})
        contest = contest_of(members[0])
        text = (
            f"{contest.spelled_for_all_lengths}; inputs {contest.inputs_label}; lengths {lengths[0]} to {lengths[-1]}."
        )
        unmeasured = unmeasured_lengths(members, trials)
        text += f" Not measured: {unmeasured}." if unmeasured else ""
        alt = (
            f"Time of one call at lengths from {lengths[0]} to {lengths[-1]}, a line for each backend that was measured"
            " there; slow ones end earlier."
        )
        picture = Picture(f"lengths-{number}", figures.length_lines(members, caption, unmeasured), alt)
        shown = {"Time of one call by length": tables.length_table(members), FAILURES: tables.failure_table(members)}
        shown = {caption: frame for caption, frame in shown.items() if len(frame)}
        sections.append(Section("Time against sequence length", text, shown, [picture]))
    return sections


def _chosen(ranked: Sequence[Placing]) -> Placing:
    return next((placing for placing in ranked if placing.deployed), ranked[0])


def _headline(ranked: Sequence[Placing], decision: TuningDecision | None) -> str:
    """Return the winner and by how much, in a line."""
    first = _chosen(ranked)
    if first.measured is None or not is_known(first.trial) or (decision is not None and decision.backend is None):
        return "No winner"
    reference = first.trial.reference_label
    backend, _, config = reference.partition(" ")
    if decision is not None and decision.gain is None and backend == first.backend:
        return f"{first.backend} stays: nothing is shown to be faster"
    other = (
        "the reference loop" if backend == "reference" else f"with {config}" if backend == first.backend else backend
    )
    return f"{first.backend} is {times(first.measured.speedup)} as fast as {other}"


def _facts(ranked: Sequence[Placing], decision: TuningDecision | None) -> list[Fact]:
    """Return the gain of the winner, the reason for its speed, the evidence, and the unmeasured backends."""
    first, facts = _chosen(ranked), []
    if first.measured is not None and is_known(first.trial):
        config = tables.config_text(first.trial.config)
        facts.append(Fact("One call", milliseconds(first.measured.median_ms), config))
    facts += _decision_facts(decision) if decision is not None else []
    missing = [placing for placing in ranked if placing.measured is None or not is_known(placing.trial)]
    facts.append(Fact("Not measured", f"{len(missing)} of {len(ranked)} backends", _reasons(missing)))
    return facts


def _decision_facts(decision: TuningDecision) -> list[Fact]:
    """Return the gain of the chosen configuration, its share of the roofline, and how strong the evidence is."""
    gain, bracket, rest = (decision.gain or "none shown").partition(" (")
    facts = [Fact("Gain over the untuned choice", gain, bracket.strip() + rest)]
    if decision.attainable_share is not None:
        detail = "of the speed that arithmetic and memory traffic allow on this machine"
        facts.append(Fact("Roofline", percent(decision.attainable_share), detail))
    return [*facts, Fact("Evidence", decision.evidence, decision.doubts)]


def _reasons(missing: Sequence[Placing]) -> str:
    """Return why backends have no numbers, each reason once; other processes that disturbed them are one reason."""
    disturbed = [placing.backend for placing in missing if placing.trial.state == "disturbed"]
    said = [f"disturbed by other processes: {', '.join(disturbed)}"] if disturbed else []
    others: dict[str, list[str]] = {}
    for placing in missing:
        if placing.backend not in disturbed:
            others.setdefault(f"{spelled_state(placing.trial.state)}, {placing.trial.reason}", []).append(
                placing.backend
            )
    return "; ".join([*said, *(f"{', '.join(names)}: {reason}" for reason, names in others.items())])


def _ranking_rows(ranked: Sequence[Placing]) -> list[RankingRow]:
    """Return the backends with numbers as bars on a logarithmic axis that starts below the slowest."""
    bars = [figures.bar(placing.trial, placing.deployed) for placing in ranked if is_known(placing.trial)]
    reached = [limit for bar in bars for limit in (bar.value, bar.low, bar.high) if math.isfinite(limit)]
    if not reached:
        return []
    start, scale = math.log(min(*reached, 1.0) / 1.2), 100 / math.log(max(reached) * 1.2 / min(*reached, 1.0))

    def place(value: float) -> float:
        return round((math.log(value) - start) * scale, 2)

    return [
        RankingRow(
            bar.name,
            ", ".join(filter(None, (bar.detail, bar.note))),
            _page_colour(look(bar.name).colour),
            times(bar.value),
            between(bar.low, bar.high, three_digits),
            place(bar.value),
            place(bar.value if math.isnan(bar.low) else bar.low),
            place(bar.value if math.isnan(bar.high) else bar.high),
        )
        for bar in bars
    ]


def fastest(ranked: Sequence[Placing]) -> str:
    """Return one sentence on the fastest backend and its baseline."""
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
        f" {milliseconds(measured.reference_median_ms)}.{unconfirmed}"
    )


def _is_of(frame: pd.DataFrame, contest: Contest) -> Any:
    if not len(frame):
        return []
    return (frame["problem"] == contest.problem.key) & (frame["inputs"] == contest.inputs_label)


def _page_colour(text: str) -> str:
    """Return `text` with the colours of ink and paper replaced by the variables of the page."""
    pattern = "|".join(PAGE_COLOURS)
    names = {colour.lower(): name for colour, name in PAGE_COLOURS.items()}
    return re.sub(pattern, lambda found: f"var(--{names[found[0].lower()]})", text, flags=re.IGNORECASE)


def _inline_svg(path: Path) -> Markup:
    """Return a picture to stand in the page itself, in the colours of the page."""
    text = path.read_text(encoding="utf-8")
    return Markup(_page_colour(text[text.index("<svg") :]))


def _dates(trials: Iterable[Trial]) -> str:
    """Return the days, in UTC, on which `trials` were measured."""
    days = sorted({datetime.fromtimestamp(trial.started_at, UTC).date().isoformat() for trial in trials})
    return f"measured on {days[0]}" if len(days) == 1 else f"measured from {days[0]} to {days[-1]}"
