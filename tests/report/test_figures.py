"""The figures: what they say, and that files come out of them."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from helpers.records import block, measurement, trial
from scanlab.contract.problem import ScanProblem
from scanlab.report import figures, search_figures
from scanlab.report.formatting import TIMES, TO
from scanlab.report.select import contest_of, placings
from scanlab.report.style import LOOKS, apart, look, over

MS = 1_000_000
CAPTION = "some machine, 2 usable CPUs; measured on 1970-01-01"


def timed(speedup: float, **changes):
    return trial(**({"measurement": measurement(block([round(8 * MS / speedup)], [8 * MS]))} | changes))


SEARCH = [
    timed(2.0, backend="chunked", config={"chunk": 8, "threads": 1}),
    timed(5.0, backend="chunked", config={"chunk": 16, "threads": 1}),
    timed(4.0, backend="chunked", config={"chunk": 8, "threads": 2}),
    trial(config={"chunk": 32, "threads": 1}, state="crashed", reason="boom", measurement=None, verdict=None),
    timed(40.0, backend="native", config={"threads": 1}),
    trial(backend="triton", config={}, state="rejected", reason="no GPU is visible", measurement=None, verdict=None),
]
CONTEST = contest_of(SEARCH[0])
LENGTHS = [
    timed(speedup, phase="lengths", backend=backend, problem=ScanProblem(batch=1, dim=4, length=length, state=2))
    for backend, speedup in (("chunked", 2.0), ("somebodys_plugin", 3.0))
    for length in (64, 128)
]
DRAWN = {
    "speedup": lambda: figures.speedup_bars(CONTEST, placings(SEARCH), CAPTION),
    "lengths": lambda: figures.length_lines(LENGTHS, CAPTION),
    "accuracy": lambda: figures.accuracy(CONTEST, SEARCH, CAPTION),
    "landscape": lambda: search_figures.landscapes(CONTEST, SEARCH, CAPTION),
    "history": lambda: search_figures.history(CONTEST, SEARCH, CAPTION),
    "importance": lambda: search_figures.importance_bars({"chunked": {"chunk": 0.25, "threads": 0.75}}, CAPTION),
}


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_becomes_a_png_and_an_svg_that_name_the_machine(name, tmp_path):
    figure = DRAWN[name]()
    assert "some machine, 2 usable CPUs" in " ".join(texts(figure))
    png, svg = figures.save(figure, tmp_path, name)
    with Image.open(png) as image:
        image.verify()
        assert image.size[0] > 700
    assert ElementTree.parse(svg).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_line_ends_where_its_backend_was_measured_no_further():
    shorter = [each for each in LENGTHS if (each.backend, each.problem.length) != ("chunked", 128)]
    failed = trial(phase="lengths", state="crashed", reason="boom", measurement=None, problem=LENGTHS[1].problem)
    shown = texts(figures.length_lines([*shorter, failed], CAPTION))
    assert "chunked  4.00 ms at 64" in shown
    assert "somebodys_plugin  2.67 ms" in shown


def test_bars_show_values_and_reasons():
    shown = texts(DRAWN["speedup"]())
    assert f"40.0{TIMES}" in shown
    assert f"5.00{TIMES}" in shown
    assert any("takes no part: no GPU is visible" in text for text in shown)
    assert any("search only" in text for text in shown)


def test_a_bar_on_a_logarithmic_axis_starts_at_one():
    axes: Any
    (axes,) = DRAWN["speedup"]().axes
    assert axes.get_xscale() == "log"
    assert {round(bar.get_x(), 9) for bar in axes.patches} == {1.0}


def test_bars_that_are_close_stand_on_a_linear_axis_and_start_at_zero():
    axes: Any
    (axes,) = figures.speedup_bars(CONTEST, placings(SEARCH[:3]), CAPTION).axes
    assert axes.get_xscale() == "linear"
    assert {bar.get_x() for bar in axes.patches} == {0.0}


def test_the_landscape_has_a_cell_for_each_pair_and_says_why_one_is_empty():
    figure = DRAWN["landscape"]()
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 1  # native has one tunable and triton none
    cells = {tuple(text.get_position()): text.get_text() for text in panels[0].texts}
    # chunk 8, 16, 32 across; threads 1, 2 down.
    assert [cells[column, 0] for column in range(3)] == ["2.00", "5.00", "crashed"]
    assert cells[0, 1] == "4.00"
    assert cells[1, 1] == cells[2, 1] == TO


def test_the_accuracy_has_every_configuration_and_names_the_best():
    figure = DRAWN["accuracy"]()
    (axes,) = figure.axes
    dots = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert [np.size(line.get_xdata()) for line in dots] == [4, 2]  # the best of each backend is drawn twice
    assert {"chunked  1.60 ms", "native  200 µs"} <= set(texts(figure))


def test_the_history_never_falls():
    (axes,) = DRAWN["history"]().axes
    steps: list[Any] = [line.get_ydata() for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert len(steps) == 2
    assert all((values[1:] >= values[:-1]).all() for values in steps)
    assert [values[-1] for values in steps] == pytest.approx([5.0, 40.0])


def test_figures_with_nothing_to_show_are_none():
    nothing = [trial(state="crashed", reason="boom", measurement=None, verdict=None)]
    assert figures.accuracy(CONTEST, nothing, CAPTION) is None
    assert search_figures.landscapes(CONTEST, nothing, CAPTION) is None
    assert search_figures.history(CONTEST, nothing, CAPTION) is None
    assert search_figures.importance_bars({}, CAPTION) is None


def luminance(colour):
    red, green, blue = to_rgb(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_backends_differ_in_marker_and_in_lightness():
    assert len({each.marker for each in LOOKS.values()}) == len(LOOKS)
    shades = sorted(luminance(each.colour) for each in LOOKS.values())
    assert min(later - earlier for earlier, later in itertools.pairwise(shades)) > 0.03


def test_a_name_not_known_here_has_one_look_that_follows_from_the_name():
    assert look("somebodys_plugin") == ("#4e8a3e", "H", "--")
    assert look("another_plugin") != look("somebodys_plugin")
    assert look("native") is LOOKS["native"]


@pytest.mark.parametrize("colour", [each.colour for each in LOOKS.values()])
def test_what_is_written_over_a_colour_can_be_read(colour):
    def linear(channel):
        return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4

    def relative(shade):
        return sum(share * linear(part) for share, part in zip((0.2126, 0.7152, 0.0722), to_rgb(shade), strict=True))

    light, dark = sorted((relative(colour), relative(over(colour))), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3.0  # WCAG 2.2 for graphics


def test_labels_move_apart_and_keep_their_order():
    assert apart([0.0, 10.0, 20.0], 1.0) == [0.0, 10.0, 20.0]
    assert apart([5.0, 5.0], 2.0) == [4.0, 6.0]
    moved = apart([3.0, 1.0, 1.1, 1.2], 1.0)
    assert moved[1] < moved[2] < moved[3] < moved[0]
    places = sorted(moved)
    assert all(later - earlier >= 1.0 - 1e-9 for earlier, later in itertools.pairwise(places))


def test_disturbed_trials_are_hollow_and_without_digits():
    odd = timed(330.0, state="disturbed", reason="8 of 9 blocks", backend="native", config={"threads": 2})
    trials = [*SEARCH[:4], odd]
    bars = texts(figures.speedup_bars(CONTEST, placings(trials), CAPTION))
    assert "? disturbed: 8 of 9 blocks" in bars
    assert not any("330" in text for text in bars)
    (axes,) = search_figures.history(CONTEST, trials, CAPTION).axes
    assert [line.get_ydata() for line in axes.lines if line.get_markerfacecolor() == "none"] == [
        pytest.approx([330.0], rel=1e-3)
    ]
