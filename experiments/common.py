"""Helpers of the experiments: interleaved times, fresh processes, plots and pages."""

import math
import multiprocessing
import os
import random
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scanlab import settings
from scanlab.bench.clock import MeasuringClock, QuietWait
from scanlab.bench.compare import Comparer
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.process_worker import open_worker
from scanlab.bench.ranking import Comparison
from scanlab.bench.store import TrialStore
from scanlab.bench.timing import peak_bytes
from scanlab.contract.cpu import usable_threads
from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanInputs, ScanProblem
from scanlab.report import figures, tables
from scanlab.report.formatting import shortest
from scanlab.report.style import INK, applied, label_ends, log_ticks, looks, sheet
from scanlab.runtime.decisions import PARTS
from scanlab.runtime.dispatch import Dispatcher

T = TypeVar("T")
Call = Callable[[], object]
RESULTS = Path(__file__).parents[1] / "results"


def place(threads: int | None = None) -> str:
    """Return the machine, the day and the threads of a measurement (None: as many as can run), as text."""
    threads = usable_threads() if threads is None else threads
    day = time.strftime("%Y-%m-%d", time.gmtime())
    pages = ", torch on huge pages" if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1" else ""
    kept = ", freed memory kept" if "MALLOC_TRIM_THRESHOLD_" in os.environ else ""
    return f"{this_machine().describe()}; {day}, {threads} thread{'s' * (threads > 1)}{pages}{kept}"


def setting() -> str:
    """Return the machine, the day and the load, as text for a caption."""
    return f"{place()}, load before the run {os.getloadavg()[0]:.2f}"


def silicon_name() -> str:
    """Return the processor's name as a part of a file name, such as "amd-epyc"."""
    words = re.sub(r"\((r|tm)\)|@.*|\b(processor|cpu|\d+-core)\b", " ", this_machine().silicon.model_name.lower())
    return "-".join(re.findall(r"[a-z0-9]+", words)) or "unknown"


def compared(
    problem: ScanProblem,
    inputs: tuple[ScanInputs, ...],
    label: str,
    candidates: Sequence[Candidate],
    seconds: float,
    folder: Path,
    seed: int = 0,
    baseline: Candidate | None = None,
) -> Comparison:
    """Compare `candidates` for `seconds` of measuring, with the records in `folder`."""
    context = BenchmarkContext.of(problem, inputs, label, seed)
    worker, _ = open_worker(context, [each.backend for each in candidates])
    clock = MeasuringClock()
    comparer = Comparer(context, worker, TrialStore(folder), clock, QuietWait(seconds, clock, worker.disturbance))
    try:
        with clock.paused():
            for each in candidates:
                worker.prepare(each)
        return comparer.compare(candidates, seconds, baseline=baseline)
    finally:
        worker.close()


def served_by(dispatcher: Dispatcher) -> str:
    """Return the backends and configurations that `dispatcher` has used so far, as text."""
    scans = [each for problem, each in dispatcher.decided.items() if problem.op not in PARTS]
    used = {f"{each.backend} {tables.config_text(each.config)}".strip() for each in scans}
    return ", ".join(sorted(used))


def interleaved(
    calls: Mapping[str, Call], fewest: int, most: int, limit_s: float, *, warm: bool = False
) -> dict[str, NDArray[np.float64]]:
    """Time calls in rounds of all calls in random order: at least `fewest` rounds, and new ones until `limit_s`.

    The first round is not counted, unless `warm`.

    Returns:
        Seconds of each call, by name.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    uncounted = 0 if warm else 1
    start = time.perf_counter()
    for turn in range(uncounted + most):
        if turn >= uncounted + fewest and time.perf_counter() - start > limit_s:
            break
        for name in random.sample(list(calls), len(calls)):
            begin = time.perf_counter()
            calls[name]()
            taken[name].append(time.perf_counter() - begin)
    return {name: np.array(samples[uncounted:]) for name, samples in taken.items()}


def quartiles_s(samples: NDArray[np.float64]) -> dict[str, float]:
    """Return the first quartile, median and third quartile by name."""
    return dict(zip(("quartile1_s", "median_s", "quartile3_s"), np.quantile(samples, (0.25, 0.5, 0.75)), strict=True))


def fresh_peak_bytes(ready: Callable[..., Call], *arguments: object) -> float | None:
    """Return the peak memory in bytes of the call `ready(*arguments)`, measured in a fresh process.

    The memory that was in use before the call is subtracted. The resolution is a page. NaN where the system does not
    report it; None, with the reason printed, where the process died.
    """
    peak = in_fresh_process(_peak_bytes, ready, arguments)
    if isinstance(peak, str):
        print(f"{ready.__name__}{arguments}: {peak}")
        return None
    return peak


def _peak_bytes(ready: Callable[..., Call], arguments: tuple[object, ...]) -> float:
    call = ready(*arguments)
    call()
    peak = peak_bytes(call, "cpu", usable_threads())
    return math.nan if peak is None else max(peak, os.sysconf("SC_PAGE_SIZE"))


def in_fresh_process(function: Callable[..., T], *arguments: object) -> T | str:
    """Return the result of `function(*arguments)` in a fresh process, or the reason why that process failed."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        result: T = receiver.recv()
        return result
    except EOFError:
        process.join()
        return f"its process ended with status {process.exitcode}"
    finally:
        process.kill()
        process.join()


def _send(sender: Connection, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    sender.send(function(*arguments))


class Plot(NamedTuple):
    """Lines by name, each {x: y}, and the labels of the axes; y is logarithmic, and x too by default."""

    title: str
    subtitle: str
    x_label: str
    y_label: str
    lines: Mapping[str, Mapping[float, float]]
    spell: Callable[[float], str] = shortest
    logarithmic_x: bool = True


def lines_of(frame: pd.DataFrame) -> dict[str, dict[float, float]]:
    """Return one line of a plot for each column, over the index."""
    return {str(name): frame[name].dropna().to_dict() for name in frame}


def spelled(frame: pd.DataFrame, spell: Callable[[float], str]) -> pd.DataFrame:
    """Return the numbers of `frame` as text, with its index as the first column."""
    return frame.map(spell).rename(index=str).reset_index()


def crossing(ratio: "pd.Series[float]") -> str:
    """Return the index at which a ratio first exceeds 1, interpolated over logarithms, as text."""
    above = ratio.to_numpy() > 1.0
    if above[0] or not above.any():
        return f"{'below' if above[0] else 'not up to'} {ratio.index[0 if above[0] else -1]}"
    high = int(np.argmax(above))
    (small, before), (large, after) = ratio.iloc[high - 1 : high + 1].items()
    return f"{small * (large / small) ** (math.log(before) / math.log(before / after)):.0f}"


@applied()
def drawn(plot: Plot, caption: str) -> Figure:
    """Draw the plot as a figure, with a label at the end of every line."""
    made = sheet(7.6, 4.4, plot.title, plot.subtitle, caption)
    (axes,) = made.axes
    axes.set(yscale="log", xlabel=plot.x_label, ylabel=plot.y_label)
    places = sorted({x for line in plot.lines.values() for x in line})
    heights = [y for line in plot.lines.values() for y in line.values()]
    right = places[-1] * 1.06
    ends, words, shapes = {}, {}, looks(plot.lines)
    for name, line in plot.lines.items():
        colour, marker, _ = shapes[name]
        axes.plot(list(line), list(line.values()), color=colour, marker=marker, markeredgecolor=INK, mew=0.6)
        last = max(line)
        ends[name] = line[last]
        words[name] = f"{name}  {plot.spell(line[last])}" + (f" at {last:g}" if last < places[-1] else "")
        if last < places[-1]:  # a line that ends early is led to its name
            axes.plot([last, right], [line[last]] * 2, ":", color=colour, linewidth=1.0)
    if plot.logarithmic_x:
        axes.set_xscale("log")
        axes.set_xlim(places[0] / 1.06, right)
        axes.set_xticks(places, [shortest(x) for x in places])
        axes.set_xticks([], minor=True)
    else:
        axes.set_xlim(0.0, right)
    axes.set_ylim(min(heights) / 1.5, max(heights) * 1.5)
    log_ticks(axes, "y", lambda value, _: plot.spell(value))
    axes.grid(axis="y")
    label_ends(axes, ends, words, {name: shape.colour for name, shape in shapes.items()})
    return made.figure


def write_page(
    folder: Path,
    claim: str | None,
    caption: str,
    pictures: Mapping[str, Figure],
    sections: Mapping[str, pd.DataFrame],
    numbers: pd.DataFrame,
    name: str | None = None,
) -> None:
    """Write the page of an experiment into `folder`: its claim, pictures, tables of text; and its numbers as CSV.

    Both files are called `name`, by default as the folder is. Where that page is of another processor, the page, the
    numbers and the pictures get the name of this one, so that no machine overwrites the results of another.
    """
    name = folder.name if name is None else name
    folder.mkdir(parents=True, exist_ok=True)
    suffix = _suffix(folder, name)
    name += suffix
    for picture, figure in pictures.items():
        figures.save(figure, folder, f"{picture}{suffix}")
    shown = [f"![{picture.replace('_', ' ')}]({picture}{suffix}.png)" for picture in pictures]
    written = [f"## {heading}\n\n{tables.markdown(text)}" for heading, text in sections.items()]
    page = "\n\n".join((f"# {(claim or '').strip()}", f"{caption}.", f"Command: `{_command()}`", *shown, *written))
    (folder / f"{name}.md").write_text(f"{page}\n")
    (folder / f"{name}.csv").write_text(tables.csv(numbers))


def _command() -> str:
    """Return the command of this process, with the variables that choose implementations."""
    chosen = (settings.BACKEND, settings.MIXER, settings.LINEAR, settings.ISA)
    variables = [f"{each.name}={each.get()}" for each in chosen if each.get()]
    script = f"experiments/{Path(sys.argv[0]).name}"
    return " ".join((*variables, "python", shlex.join((script, *sys.argv[1:]))))


def write_csv(folder: Path, numbers: pd.DataFrame, part: str) -> None:
    """Write the numbers of a part of the page in `folder` beside that page."""
    folder.mkdir(parents=True, exist_ok=True)
    _csv_of(folder, part).write_text(tables.csv(numbers))


def read_csv(folder: Path, part: str | None = None) -> pd.DataFrame:
    """Return the numbers beside the page in `folder` that is of this processor, all or of a part; empty without any."""
    path = _csv_of(folder, part)
    return pd.read_csv(path, keep_default_na=False) if path.exists() else pd.DataFrame()


def _csv_of(folder: Path, part: str | None) -> Path:
    name = folder.name if part is None else f"{folder.name}-{part}"
    return folder / f"{name}{_suffix(folder, folder.name)}.csv"


def _suffix(folder: Path, name: str) -> str:
    """Return what the files of this processor's page have after their name: nothing unless another has that page."""
    page = folder / f"{name}.md"
    is_of_another = page.exists() and this_machine().silicon.model_name not in page.read_text()
    return f"-{silicon_name()}" if is_of_another else ""
