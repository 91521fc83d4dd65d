"""Figures of results: speed, error and length; `save` writes a figure as PNG and SVG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from scanlab.bench.records import Trial, spelled_state
from scanlab.bench.samples import Measurement
from scanlab.report.formatting import between, milliseconds, shortest, three_digits, times
from scanlab.report.select import Contest, Placing, best, contest_of, is_known, speedup_interval
from scanlab.report.style import (
    FAINT,
    HALO,
    INK,
    RULE,
    WIDTH_INCHES,
    Look,
    applied,
    framed_bar,
    label_ends,
    log_ticks,
    look,
    sheet,
)

# Share of the axes to the left of the base of the bars, up to which notes have room for long lines.
NEAR_THE_EDGE = 0.2


class Bar(NamedTuple):
    """Row of a bar chart: a ratio with its interval, or the note why there is none."""

    name: str
    detail: str
    look: Look
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    note: str = ""
    claim: float = math.nan


@applied()
def speedup_bars(contest: Contest, placings: Sequence[Placing], caption: str) -> Figure:
    """Draw the speed-up of every backend over the reference, with 95 % intervals, or the reason for having none."""
    reference = next((placing.trial.reference_label for placing in placings if placing.measured), "the reference")
    bars = [bar(placing.trial, placing.deployed) for placing in placings]
    subtitle = f"{contest.title}. Best configuration of each backend, over {reference}; bars: 95 % interval."
    title = f"Speed-up over {reference.partition(' ')[0]}"
    return bar_chart(bars, title, subtitle, caption, "speed-up (times)")


def bar(trial: Trial, deployed: bool = False) -> Bar:
    """Return the bar of one trial, or the note why it has none."""
    if trial.measurement is None or not is_known(trial):
        return Bar(
            trial.backend,
            "",
            look(trial.backend),
            note=f"{'? ' * (trial.measurement is not None)}{spelled_state(trial.state)}: {trial.reason}",
        )
    detail = " ".join(f"{name}={value}" for name, value in trial.config.items())
    note = ", ".join(filter(None, ("deployed" * deployed, "search only" * (trial.phase == "search"))))
    interval = speedup_interval(trial.measurement)
    return Bar(trial.backend, detail, look(trial.backend), trial.measurement.speedup, *interval, note)


@applied()
def bar_chart(bars: Sequence[Bar], title: str, subtitle: str, caption: str, unit: str) -> Figure:
    """Draw horizontal bars, each with its interval, value and, where one is made, its claim.

    The axis is logarithmic where the values are far apart; bars then start at 1, and otherwise at 0.
    """
    made = sheet(7.6, 0.5 + 0.44 * len(bars), title, subtitle, caption)
    (axes,) = made.axes
    reached = [
        limit for each in bars for limit in (each.value, each.low, each.high, each.claim, 1.0) if math.isfinite(limit)
    ]
    logarithmic = max(reached) / min(reached) > 8
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(min(reached) / 1.15, max(reached) * (max(reached) / min(reached)) ** 0.42)
    else:
        axes.set_xlim(0.0, max(reached) * 1.34)
    base = 1.0 if logarithmic else 0.0
    for row, each in enumerate(bars):
        _draw_bar(axes, row, each, base)
    axes.axvline(1.0, color=INK, linewidth=1.0, zorder=1)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_yticks(range(len(bars)), [each.name for each in bars], weight="bold")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel("\n".join(textwrap.wrap(unit, 80)))
    if logarithmic:
        log_ticks(axes, "x", times, reach=1.6 * max(reached))
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: times(value, shortest)))
    return made.figure


def _draw_bar(axes: Axes, row: int, bar: Bar, base: float) -> None:
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "zorder": 4, "bbox": HALO}
    if math.isnan(bar.value):
        left, _ = axes.transAxes.inverted().transform(axes.transData.transform((base, row)))
        note = "\n".join(textwrap.wrap(bar.note, 78 if left < NEAR_THE_EDGE else 40, max_lines=3, placeholder=" ..."))
        axes.annotate(note, (base, row), (6, 0), size=7.5, style="italic", color=FAINT, **beside)
        return
    framed_bar(axes, row, bar.value, 0.62, bar.look, base)
    for colour, width in (("white", 3.0), (INK, 1.2)):
        axes.plot([bar.low, bar.high], [row, row], "|-", color=colour, lw=width, ms=8, mew=width, zorder=3)
    if not math.isnan(bar.claim):
        axes.plot(bar.claim, row, "D", markersize=7, markerfacecolor="white", markeredgecolor=INK, zorder=5)
    right = max(limit for limit in (bar.value, bar.high, bar.claim, base) if not math.isnan(limit))
    value = axes.annotate(times(bar.value), (right, row), (7, 0), size=9.5, weight="bold", **beside)
    interval = ", ".join(filter(None, (between(bar.low, bar.high, three_digits), bar.note)))
    claim = "" if math.isnan(bar.claim) else f"claimed: {times(bar.claim)}"
    details = "\n".join(filter(None, (interval, claim, *textwrap.wrap(bar.detail, 34))))
    axes.annotate(details, (1.0, 0.5), (6, 0), xycoords=value, size=7.0, color=FAINT, **beside)


@applied()
def length_lines(trials: Sequence[Trial], caption: str, unmeasured: str = "") -> Figure:
    """Draw the time of one call against the length of the sequence, the fastest configuration of each backend.

    Args:
        trials: A family (see `families`): they differ in the length of their problem.
        caption: Where and when they were measured.
        unmeasured: Backends without times, and at which lengths; see `unmeasured_lengths`.
    """
    problem = trials[0].problem
    lines = {backend: _fastest_by_length(trials, backend) for backend in dict.fromkeys(t.backend for t in trials)}
    lines = {backend: line for backend, line in lines.items() if line}
    subtitle = (
        f"{contest_of(trials[0]).spelled_for_all_lengths};"
        " fastest configuration of each backend at each length; bars from the first to the third quartile."
        + (f" Not measured: {unmeasured}." if unmeasured else "")
    )
    made = sheet(WIDTH_INCHES, 4.2, f"Time against {problem.swept}", subtitle, caption)
    (axes,) = made.axes
    axes.set(xscale="log", yscale="log", xlabel=problem.swept, ylabel="time of one call")
    lengths = sorted({length for line in lines.values() for length in line})
    right = lengths[-1] * 1.08
    ends, words = {}, {}
    for backend, line in lines.items():
        last = max(line)
        ends[backend] = line[last].median_ms
        words[backend] = f"{backend}  {milliseconds(ends[backend])}" + (f" at {last}" if last < lengths[-1] else "")
        _draw_line(axes, backend, line)
        if last < lengths[-1]:  # a line ends where its backend was measured no further
            axes.plot([last, right], [ends[backend]] * 2, ":", color=look(backend).colour, linewidth=1.0)
    low = min(measured.quartiles_ms[0] for line in lines.values() for measured in line.values())
    high = max(measured.quartiles_ms[2] for line in lines.values() for measured in line.values())
    axes.set_ylim(low / 1.6, high * 1.5)
    axes.set_xlim(lengths[0] / 1.08, right)
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    log_ticks(axes, "y", milliseconds)
    axes.grid(axis="y")
    _proportional_guide(axes, lengths, high)
    label_ends(axes, ends, words, {backend: look(backend).colour for backend in ends})
    return made.figure


def _fastest_by_length(trials: Sequence[Trial], backend: str) -> dict[int, Measurement]:
    by_length: dict[int, list[Trial]] = {}
    for trial in trials:
        if trial.backend == backend and trial.measurement is not None:
            by_length.setdefault(trial.problem.swept_size, []).append(trial)
    found = {length: best(members) for length, members in sorted(by_length.items())}
    return {length: trial.measurement for length, trial in found.items() if trial.measurement and is_known(trial)}


def _draw_line(axes: Axes, backend: str, line: Mapping[int, Measurement]) -> None:
    colour, marker, _ = look(backend)
    for length, measured in line.items():
        spread = measured.quartiles_ms[::2]
        axes.plot([length] * 2, spread, color=INK, linewidth=1.2, marker="_", markersize=7, zorder=2)
    medians = [measured.median_ms for measured in line.values()]
    edge: dict[str, Any] = {"markeredgecolor": INK, "markeredgewidth": 0.6}
    axes.plot(list(line), medians, color=colour, marker=marker, markersize=6.5, zorder=3, **edge)


def _proportional_guide(axes: Axes, lengths: Sequence[int], high_ms: float) -> None:
    """Draw a line of slope 1 along which time grows as the length does."""
    ends = (lengths[0], lengths[-1])
    heights = [1.2 * high_ms * length / ends[1] for length in ends]
    axes.plot(ends, heights, color=FAINT, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    middle = (math.sqrt(ends[0] * ends[1]), math.sqrt(heights[0] * heights[1]))
    beside: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "va": "bottom", "bbox": HALO}
    axes.annotate("proportional to length", middle, (-6, 0), size=7.5, color=FAINT, **beside)


@applied()
def change_dots(
    contest: Contest, times_ms: Mapping[str, tuple[float, float, str]], names: tuple[str, str], caption: str
) -> Figure | None:
    """Draw the time of each backend before and after, joined by a line that is bold where they differ.

    Args:
        contest: Trials of one measurement.
        times_ms: By backend: time before, time after, and the verdict; NaN if there is no time.
        names: Names of the two results.
        caption: Where they were measured.

    Returns:
        The figure, or None if no backend has a time.
    """
    reached = [value for *pair, _ in times_ms.values() for value in pair if not math.isnan(value)]
    if not reached:
        return None
    subtitle = f"{contest.title}. Hollow: {names[0]}; filled: {names[1]}."
    made = sheet(WIDTH_INCHES, 0.7 + 0.4 * len(times_ms), "Time of one call, before and after", subtitle, caption)
    (axes,) = made.axes
    axes.set(xscale="log", xlabel="time of one call, best configuration of each backend")
    axes.set_xlim(min(reached) / 1.3, max(reached) * (max(reached) / min(reached)) ** 0.25 * 1.3)
    for row, (backend, (before, after, verdict)) in enumerate(times_ms.items()):
        colour, marker, _ = look(backend)
        differs = verdict in ("faster", "slower")
        axes.plot([before, after], [row, row], color=INK if differs else RULE, linewidth=2.0 if differs else 1.0)
        axes.plot(before, row, marker, markersize=8, markerfacecolor="white", markeredgecolor=colour, zorder=3)
        axes.plot(after, row, marker, markersize=8, color=colour, markeredgecolor=INK, markeredgewidth=0.7, zorder=4)
        right = max(value for value in (before, after) if not math.isnan(value))
        beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "size": 7.5, "bbox": HALO}
        axes.annotate(verdict, (right, row), (9, 0), color=INK if differs else FAINT, **beside)
    axes.set_ylim(len(times_ms) - 0.4, -0.6)
    axes.set_yticks(range(len(times_ms)), list(times_ms), weight="bold")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    log_ticks(axes, "x", milliseconds)
    return made.figure


@applied()
def accuracy(contest: Contest, trials: Sequence[Trial], caption: str) -> Figure | None:
    """Draw the time of one call against the error, each configuration a dot and the best of each backend filled.

    Args:
        contest: Trials that were compared.
        trials: Trials of it.
        caption: Where and when they were measured.

    Returns:
        The figure, or None if no configuration has both numbers.
    """
    shown: dict[str, list[tuple[float, float]]] = {}
    for backend in dict.fromkeys(trial.backend for trial in trials):
        own = [trial for trial in trials if trial.backend == backend and is_known(trial)]
        own = [trial for trial in own if trial.verdict is not None and trial.verdict.worst > 0]
        newest = {trial.label: trial for trial in own if trial.phase != "lengths"}
        for trial in [*newest.values(), *([best(own)] if own else [])]:
            if trial.measurement is not None and trial.verdict is not None:
                shown.setdefault(backend, []).append((trial.verdict.worst, trial.measurement.median_ms))
    if not shown:
        return None
    title, subtitle = "Speed against error", f"{contest.title}. Filled: the best configuration of each backend."
    made = sheet(WIDTH_INCHES, 3.8, title, subtitle, caption)
    (axes,) = made.axes
    axes.set(xscale="log", yscale="log", ylabel="time of one call")
    axes.set_xlabel("largest error against float64 (share of the tensor's largest value)")
    for backend, points in shown.items():
        colour, marker, _ = look(backend)
        axes.plot(*zip(*points, strict=True), marker, markersize=4.5, mfc="none", mec=colour, alpha=0.6)
        axes.plot(*points[-1], marker, markersize=9, color=colour, markeredgecolor=INK, markeredgewidth=0.7, zorder=3)
    errors, heights = zip(*(point for points in shown.values() for point in points), strict=True)
    axes.set_xlim(min(errors) / 1.6, max(errors) * 1.6)
    axes.set_ylim(min(heights) / 1.5, max(heights) * 1.5)
    log_ticks(axes, "x", lambda value, _: f"{value:.0e}")
    log_ticks(axes, "y", milliseconds)
    axes.grid()
    ends = {backend: points[-1][1] for backend, points in shown.items()}
    words = {backend: f"{backend}  {milliseconds(end)}" for backend, end in ends.items()}
    label_ends(axes, ends, words, {backend: look(backend).colour for backend in ends})
    return made.figure


@applied()
def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `figure` as NAME.png (150 dots per inch) and NAME.svg, the same bytes for the same figure."""
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    figure.savefig(png, dpi=150, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]
