"""Figures of a search: the landscape of the tunables, the course over time, and the importance of each tunable."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from scanlab.bench.records import Trial
from scanlab.contract.space import Value
from scanlab.report.formatting import TO, three_digits, times
from scanlab.report.select import Contest, best, is_known, reference_of
from scanlab.report.style import FAINT, INK, WIDTH_INCHES, applied, framed_bar, label_ends, log_ticks, look, over, sheet

# Letters in a line above one of two panels.
PANEL_LETTERS = 26


@applied()
def landscapes(
    contest: Contest, trials: Sequence[Trial], caption: str, shown: Mapping[str, Trial] | None = None
) -> Figure | None:
    """Draw the speed-up over the two tunables with most values, one heat map for each backend that has two.

    Args:
        contest: Trials of the search.
        trials: Those of its search; tunables beyond the two are at their best in each cell.
        caption: Where and when they were measured.
        shown: By backend, the trial that its numbers come from elsewhere in the report, whose cell is framed; that of
            the strongest evidence by default.

    Returns:
        The figure, or None if no backend with numbers has two tunables that vary.
    """
    backends = dict.fromkeys(trial.backend for trial in trials if is_known(trial))
    panels = {backend: pair for backend in backends if (pair := _two_axes(trials, backend)) is not None}
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    tallest = max(len(down[1]) for _, down in panels.values())
    subtitle = (
        f"{contest.title}. Speed-up over {reference_of(trials)}; framed: the configuration that the other numbers are"
        f" of, by the strongest evidence; ?: disturbed; {TO}: not tried."
    )
    title = "Landscape of the tunables"
    made = sheet(WIDTH_INCHES, rows * (0.95 + 0.34 * tallest), title, subtitle, caption, columns, rows)
    for axes, (backend, (across, down)) in zip(made.axes, panels.items(), strict=False):
        own = [trial for trial in trials if trial.backend == backend]
        _draw_landscape(axes, backend, own, across, down, (shown or {}).get(backend, best(own)))
    for axes in made.axes[len(panels) :]:
        axes.set_axis_off()
    return made.figure


Tunable = tuple[str, tuple[Value, ...]]


def _two_axes(trials: Sequence[Trial], backend: str) -> tuple[Tunable, Tunable] | None:
    """Return the two tunables of `backend` with most values tried, or None if fewer than two vary."""
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
    axes: Axes, backend: str, trials: Sequence[Trial], across: Tunable, down: Tunable, shown: Trial
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
    at_down, at_across = shown.config.get(down[0]), shown.config.get(across[0])
    if at_down in down[1] and at_across in across[1]:
        row, column = down[1].index(at_down), across[1].index(at_across)
        axes.add_patch(
            Rectangle(
                (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=2.4, zorder=5, clip_on=False
            )
        )
    others = sorted({name for trial in trials for name in trial.config} - {across[0], down[0]})
    rest = f", best over {', '.join(others)}" if others else ""
    title = "\n".join(textwrap.wrap(f"{backend}{rest}", PANEL_LETTERS))
    axes.set_title(title, loc="left", size=9.0, weight="bold")
    axes.set_xticks(range(len(across[1])), [str(value) for value in across[1]])
    axes.set_yticks(range(len(down[1])), [str(value) for value in down[1]])
    axes.set(xlabel=across[0], ylabel=down[0])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


@applied()
def history(contest: Contest, trials: Sequence[Trial], caption: str) -> Figure | None:
    """Draw the best speed-up found so far by each backend, against the time that the search had spent.

    The trials are those of the search on one contest, oldest first. None is returned where no trial has numbers.
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
    made = sheet(WIDTH_INCHES, 3.8, "How the search went", subtitle, caption)
    (axes,) = made.axes
    axes.set(yscale="log", xlabel="time spent on trials (s)", ylabel=f"speed-up over {reference_of(trials)} (times)")
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
    """Draw how much of the spread of a backend's times each tunable explains; None if nothing is known.

    The importances are shares of 1, by backend and by tunable.
    """
    rows = [
        (backend, name, share)
        for backend, shares in importances.items()
        for name, share in sorted(shares.items(), key=lambda item: -item[1])
    ]
    if not rows:
        return None
    subtitle = "Share of the variation between a backend's trials that each of its tunables explains."
    made = sheet(WIDTH_INCHES, 0.5 + 0.27 * len(rows) + 0.12 * len(importances), "Importance", subtitle, caption)
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
