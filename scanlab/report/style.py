"""Look of every figure: a colour, marker and hatch for each backend, and one kind of sheet.

Hues are those of Okabe and Ito (2008, Color Universal Design), which people with any colour vision tell
apart; their lightness is moved apart so that they stay in order when printed in grey.
"""

from __future__ import annotations

import colorsys
import functools
import hashlib
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from scanlab.report.formatting import shortest

INK = "#1F2328"
FAINT = "#6A737D"
RULE = "#D0D7DE"
# Width of a figure whose text can still be read where a phone shows all of it.
WIDTH_INCHES = 5.2
LABEL_INCHES = 0.17
MAX_TICKS = 8
# Text on the colour of a bar or a cell; unlike INK and white, the same in the dark scheme of a page.
ON_LIGHT, ON_DARK = "#1F2329", "#FEFEFE"

RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "hatch.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "scanlab",  # element ids, and so the files, do not differ from run to run
}

# Keeps text readable where a line runs behind it.
HALO = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}

# Drawn with matplotlib's defaults and RC, never with the settings of the user.
applied = functools.partial(style.context, ["default", RC])


class Look(NamedTuple):
    """Colour, marker and hatch of a backend in every figure."""

    colour: str
    marker: str
    hatch: str


LOOKS = {
    "reference": Look("#222222", "o", ""),
    "two_phase": Look("#00507F", "s", "///"),
    "cpp_torch": Look("#007A5C", "^", "\\\\\\"),
    "native": Look("#D55E00", "D", ""),
    "chunked": Look("#C06C9C", "v", ".."),
    "compiled": Look("#6FC1F0", "P", "xxx"),
    "associative": Look("#F3BE4E", "X", "|||"),
    "triton": Look("#E8E070", "*", "---"),
}
STRANGER_MARKERS = "<>hHpd8"
STRANGER_HATCHES = ("//", "\\\\", "++", "xx", "oo", "--")


def look(backend: str) -> Look:
    """Return the look of `backend`; that of a name not known here follows from the name alone."""
    if backend in LOOKS:
        return LOOKS[backend]
    hue, shade, marker, hatch = hashlib.sha256(backend.encode()).digest()[:4]
    colour = to_hex(colorsys.hsv_to_rgb(hue / 256, 0.55, 0.45 + 0.4 * shade / 255))
    return Look(
        colour, STRANGER_MARKERS[marker % len(STRANGER_MARKERS)], STRANGER_HATCHES[hatch % len(STRANGER_HATCHES)]
    )


# Colours that stay apart for colour-blind eyes (Okabe and Ito 2008), each with a marker of its own.
SIDE_BY_SIDE = tuple(
    Look(colour, marker, "")
    for colour, marker in zip(
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222"), "os^vDPX", strict=True
    )
)


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Return the looks of lines in one figure: backends keep their own, other names get the most distinct."""
    strangers = itertools.cycle(SIDE_BY_SIDE)
    return {name: LOOKS.get(name) or next(strangers) for name in names}


@dataclass(frozen=True)
class Sheet:
    """Figure with a title above, and a caption below that names the machine."""

    figure: Figure
    axes: tuple[Axes, ...]


def sheet(
    width: float, height: float, title: str, subtitle: str, caption: str, columns: int = 1, rows: int = 1
) -> Sheet:
    """Return a sheet with `rows` x `columns` axes, to be made inside `applied()`.

    Width and height are inches of the drawing; title and caption add to the height.
    """
    above = textwrap.wrap(subtitle, int(width * 15))
    below = textwrap.wrap(caption, int(width * 18))
    line = 0.165
    top = 0.46 + line * len(above)
    bottom = 0.14 + line * 0.85 * len(below)
    total = height + top + bottom
    figure = Figure(figsize=(width, total), dpi=150, layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0.0, bottom / total, 1.0, height / total), w_pad=0.08, h_pad=0.06)  # type: ignore[call-arg]
    left = 0.1 / width
    figure.text(left, 1 - 0.12 / total, title, va="top", size=12.0, weight="bold")
    figure.text(left, 1 - 0.38 / total, "\n".join(above), va="top", size=9.0, color=FAINT, linespacing=1.25)
    figure.text(left, 0.08 / total, "\n".join(below), va="bottom", size=7.0, color=FAINT, linespacing=1.25)
    made = figure.subplots(rows, columns, squeeze=False)
    return Sheet(figure, tuple(made.flat))


def apart(positions: Sequence[float], gap: float) -> list[float]:
    """Return `positions`, moved as little as needed for neighbours to be `gap` apart, in the same order.

    Labels that would touch form a cluster around their mean; clusters that would touch are merged.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    clusters: list[list[int]] = []
    for index in order:
        clusters.append([index])
        while len(clusters) > 1 and _start(clusters[-1], positions, gap) < _start(
            clusters[-2], positions, gap
        ) + gap * len(clusters[-2]):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    moved = list(positions)
    for cluster in clusters:
        start = _start(cluster, positions, gap)
        for place, index in enumerate(cluster):
            moved[index] = start + gap * place
    return moved


def _start(cluster: Sequence[int], positions: Sequence[float], gap: float) -> float:
    return sum(positions[index] for index in cluster) / len(cluster) - gap * (len(cluster) - 1) / 2


def log_ticks(
    axes: Axes,
    direction: Literal["x", "y"],
    spell: Callable[[float, Callable[[float], str]], str],
    reach: float = math.inf,
) -> None:
    """Label a logarithmic axis at 1, 2, 5 of each decade, or fewer where those would crowd, and none above `reach`.

    The limits of the axis must have been set.
    """
    axis = axes.xaxis if direction == "x" else axes.yaxis
    low, high = axes.get_xlim() if direction == "x" else axes.get_ylim()
    high = min(high, reach)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
        if len(ticks) <= MAX_TICKS:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: spell(value, shortest)))


def label_ends(axes: Axes, ends: Mapping[str, float], texts: Mapping[str, str], colours: Mapping[str, str]) -> None:
    """Name each line to the right of a logarithmic y axis at the height where it ends, moved apart if needed."""
    edge = axes.get_yaxis_transform()
    labels = {
        name: axes.text(1.035, end, texts[name], transform=edge, va="center", size=8.5) for name, end in ends.items()
    }
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # lays out, so that heights are known
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    inches = axes.get_window_extent().height / axes.figure.dpi
    gap = LABEL_INCHES * (high - low) / inches
    places = apart([math.log10(end) for end in ends.values()], gap)
    for (name, end), place in zip(ends.items(), places, strict=True):
        labels[name].set_y(10**place)
        axes.plot([1.0, 1.03], [end, 10**place], transform=edge, color=colours[name], linewidth=1.0, clip_on=False)


def framed_bar(axes: Axes, place: float, value: float, thickness: float, shape: Look, base: float = 0.0) -> None:
    """Draw a horizontal bar from `base` to `value` in the look of a backend; its hatch shows on dark and on light."""
    long = value - base
    axes.barh(place, long, thickness, base, color=shape.colour, edgecolor=over(shape.colour), hatch=shape.hatch, lw=0.0)
    axes.barh(place, long, thickness, base, color="none", edgecolor=INK, lw=0.8)


def over(colour: str) -> str:
    """Return a dark or a light colour, whichever shows on `colour`."""
    red, green, blue = to_rgb(colour)
    return ON_LIGHT if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.42 else ON_DARK
