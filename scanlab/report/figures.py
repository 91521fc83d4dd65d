"""The figures: each takes what to show and returns a matplotlib figure; `save` writes it as PNG and SVG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from scanlab.bench.records import Trial
from scanlab.bench.samples import Measurement
from scanlab.contract.space import Value
from scanlab.report.formatting import TO, between, milliseconds, shortest, three_digits, times
from scanlab.report.select import Contest, Placing, best, is_known, speedup_interval
from scanlab.report.style import FAINT, HALO, INK, Look, applied, framed_bar, label_ends, log_ticks, look, over, sheet


class Bar(NamedTuple):
    """A row of a bar chart: a ratio with its interval, or the note why there is none."""

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
    """Draw the speed-up of every backend over the reference, with 95 % intervals; what has none says why."""
    reference = next((placing.trial.reference_label for placing in placings if placing.measured), "the reference")
    bars = [bar(placing.trial, placing.deployed) for placing in placings]
    subtitle = f"{contest.title}. Best configuration of each backend; bars: 95 % interval."
    return bar_chart(bars, f"Speed-up over {reference}", subtitle, caption, f"speed-up over {reference} (times)")


def bar(trial: Trial, deployed: bool = False) -> Bar:
    """Return the bar of one trial, or the note why it has none."""
    if trial.measurement is None or not is_known(trial):
        return Bar(
            trial.backend,
            "",
            look(trial.backend),
            note=f"{'? ' * (trial.measurement is not None)}{trial.state}: {trial.reason}",
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
    axes.set_xlabel(unit)
    if logarithmic:
        log_ticks(axes, "x", times, reach=1.6 * max(reached))
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: times(value, shortest)))
    return made.figure


def _draw_bar(axes: Axes, row: int, bar: Bar, base: float) -> None:
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "zorder": 4, "bbox": HALO}
    if math.isnan(bar.value):
        note = "\n".join(textwrap.wrap(bar.note, 78, max_lines=2, placeholder=" ..."))
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
def length_lines(trials: Sequence[Trial], caption: str) -> Figure:
    """Draw the time of one call against the length of the sequence, the fastest configuration of each backend.

    trials  a family (see `families`): they differ in the length of their problem
    """
    problem = trials[0].problem
    lines = {backend: _fastest_by_length(trials, backend) for backend in dict.fromkeys(t.backend for t in trials)}
    lines = {backend: line for backend, line in lines.items() if line}
    subtitle = (
        f"batch {problem.batch}, dim {problem.dim}, state {problem.state}, {problem.direction}, {problem.dtype};"
        " fastest configuration of each backend at each length; bars from the first to the third quartile."
    )
    made = sheet(7.6, 4.6, "Time against sequence length", subtitle, caption)
    (axes,) = made.axes
    axes.set(xscale="log", yscale="log", xlabel="length of the sequence (time steps)", ylabel="time of one call")
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
            by_length.setdefault(trial.problem.length, []).append(trial)
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
def landscapes(contest: Contest, trials: Sequence[Trial], caption: str, deployed: str | None = None) -> Figure | None:
    """Draw the speed-up over the two tunables with most values, one heat map for each backend that has two.

    trials    those of the search on one contest; other tunables are at their best in each cell
    deployed  label of the deployed configuration, whose cell is framed in the place of the best
    """
    backends = dict.fromkeys(trial.backend for trial in trials)
    panels = {backend: pair for backend in backends if (pair := _two_axes(trials, backend)) is not None}
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    tallest = max(len(down[1]) for _, down in panels.values())
    subtitle = f"{contest.title}. Speed-up over the reference; framed: the deployed configuration, else the best."
    title = "Landscape of the tunables"
    made = sheet(3.8 * max(columns, 2), rows * (0.95 + 0.34 * tallest), title, subtitle, caption, columns, rows)
    for axes, (backend, (across, down)) in zip(made.axes, panels.items(), strict=False):
        _draw_landscape(axes, backend, [trial for trial in trials if trial.backend == backend], across, down, deployed)
    for axes in made.axes[len(panels) :]:
        axes.set_axis_off()
    return made.figure


Tunable = tuple[str, tuple[Value, ...]]


def _two_axes(trials: Sequence[Trial], backend: str) -> tuple[Tunable, Tunable] | None:
    """Return the two tunables of `backend` with most values tried, or None where fewer than two vary."""
    tried: dict[str, set[Value]] = {}
    for trial in trials:
        for name, value in trial.config.items() if trial.backend == backend else ():
            tried.setdefault(name, set()).add(value)
    varied = sorted(
        ((name, values) for name, values in tried.items() if len(values) > 1), key=lambda item: -len(item[1])
    )
    if len(varied) < 2:
        return None
    across, down = ((name, tuple(sorted(values, key=_in_order))) for name, values in varied[:2])
    return across, down


def _in_order(value: Value) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, str(value)


def _draw_landscape(
    axes: Axes, backend: str, trials: Sequence[Trial], across: Tunable, down: Tunable, deployed: str | None
) -> None:
    cells = np.full((len(down[1]), len(across[1])), math.nan)
    words: dict[tuple[int, int], str] = {}
    for row, column in np.ndindex(cells.shape):
        wanted = {across[0]: across[1][column], down[0]: down[1][row]}
        here = [trial for trial in trials if all(trial.config.get(name) == value for name, value in wanted.items())]
        if not here:
            words[row, column] = TO
            continue
        measured = best(here).measurement
        if measured is None:
            words[row, column] = here[-1].state
            continue
        if not is_known(best(here)):
            words[row, column] = "?"
            continue
        cells[row, column] = measured.speedup
        words[row, column] = three_digits(measured.speedup)
    image = axes.imshow(np.log(cells), cmap="cividis", aspect="auto")
    for (row, column), word in words.items():
        known = not math.isnan(cells[row, column])
        colour = over(to_hex(tuple(image.to_rgba(np.log(cells[row, column]))))) if known else FAINT
        axes.text(column, row, word, ha="center", va="center", size=8.0 if known else 7.0, color=colour)
    if not np.isnan(cells).all():
        row, column = np.unravel_index(np.nanargmax(cells), cells.shape)
        for config in [trial.config for trial in trials if trial.label == deployed]:
            row, column = down[1].index(config[down[0]]), across[1].index(config[across[0]])
        axes.add_patch(
            Rectangle(
                (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=2.4, zorder=5, clip_on=False
            )
        )
    others = sorted({name for trial in trials for name in trial.config} - {across[0], down[0]})
    rest = f", best over {', '.join(others)}" if others else ""
    axes.set_title(f"{backend}{rest}", loc="left", size=9.0, weight="bold")
    axes.set_xticks(range(len(across[1])), [str(value) for value in across[1]])
    axes.set_yticks(range(len(down[1])), [str(value) for value in down[1]])
    axes.set(xlabel=across[0], ylabel=down[0])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


@applied()
def history(contest: Contest, trials: Sequence[Trial], caption: str) -> Figure | None:
    """Draw the best speed-up found so far by each backend, against the time that the search had spent.

    trials  those of the search on one contest, oldest first
    """
    spent = np.cumsum([trial.duration_s for trial in trials])
    found: dict[str, list[tuple[float, float]]] = {}
    unknown: dict[str, list[tuple[float, float]]] = {}
    for second, trial in zip(spent, trials, strict=True):
        if trial.measurement is not None:
            marks = found if is_known(trial) else unknown
            marks.setdefault(trial.backend, []).append((float(second), trial.measurement.speedup))
    if not found:
        return None
    subtitle = f"{contest.title}. Marks: trials, hollow where disturbed; steps: the best so far."
    made = sheet(7.6, 4.2, "How the search went", subtitle, caption)
    (axes,) = made.axes
    axes.set(yscale="log", xlabel="time spent on trials (s)", ylabel="speed-up over the reference (times)")
    ends = {}
    end_s = 1.02 * float(spent[-1])
    for backend, points in found.items():
        colour, marker, _ = look(backend)
        seconds, speedups = (np.array(values) for values in zip(*points, strict=True))
        so_far = np.maximum.accumulate(speedups)
        ends[backend] = float(so_far[-1])
        axes.plot(
            seconds, speedups, marker, color=colour, markersize=5.0, markeredgecolor=INK, markeredgewidth=0.5, alpha=0.8
        )
        axes.step([*seconds, end_s], [*so_far, so_far[-1]], where="post", color=colour, zorder=3)
    limits = axes.get_ylim()
    for backend, points in unknown.items():
        style = look(backend)
        axes.plot(*zip(*points, strict=True), style.marker, markersize=5.0, mfc="none", mec=style.colour)
    axes.set_xlim(0.0, end_s)
    axes.set_ylim(limits)  # a disturbed trial may be far off, and would press the others together
    log_ticks(axes, "y", times)
    axes.grid(axis="y")
    words = {backend: f"{backend}  {times(end)}" for backend, end in ends.items()}
    label_ends(axes, ends, words, {backend: look(backend).colour for backend in ends})
    return made.figure


@applied()
def importance_bars(importances: Mapping[str, Mapping[str, float]], caption: str) -> Figure | None:
    """Draw how much of the spread of a backend's times each tunable explains, as shares of 1.

    importances  by backend, by tunable
    """
    rows = [
        (backend, name, share)
        for backend, shares in importances.items()
        for name, share in sorted(shares.items(), key=lambda item: -item[1])
    ]
    if not rows:
        return None
    subtitle = "Share of the variation between a backend's trials that each of its tunables explains."
    made = sheet(7.6, 0.5 + 0.27 * len(rows) + 0.12 * len(importances), "What matters", subtitle, caption)
    (axes,) = made.axes
    places, place, previous = [], 0.0, rows[0][0]
    for backend, _, share in rows:
        place += 0.45 if backend != previous else 0.0
        framed_bar(axes, place, share, 0.7, look(backend))
        axes.text(share + 0.01, place, f"{share:.0%}", va="center", size=8.5)
        places.append(place)
        place, previous = place + 1.0, backend
    axes.set_yticks(places, [f"{backend}: {name}" for backend, name, _ in rows])
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.set_xlim(0.0, 1.0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel("importance (share of the variation)")
    return made.figure


@applied()
def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `figure` as NAME.png (150 dots per inch) and NAME.svg, the same bytes for the same figure."""
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    figure.savefig(png, dpi=150, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]
