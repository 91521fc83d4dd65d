"""The Triton kernels of a Mamba block reach a measured share of the limits of their GPU.

The floor of a scan is the larger of two times: its bytes at the speed at which this GPU copies, and its exponentials at
the rate of its special-function unit, both measured here; the floor of the convolution and of the norm is their bytes.
Every configuration of the scan is verified against the reference before it is timed, and the other ops against PyTorch.
Times are medians of CUDA events (`gpu_timing.py`). "Official" is mamba_ssm's CUDA scan, where it is installed, in the
layout that it was written for and once in each direction. Scans are compared with it, and models with DeiT of the same
width with eager attention. Vision Mamba runs on all of these kernels; where they cannot run nothing is measured. The
backward pass of a loop in PyTorch takes time quadratic in the length: it is measured up to 512 steps. Models also run
as a CUDA graph, which takes the launches from the host. The page is rewritten after every step: first the defaults of
all shapes, last the tuned configurations until the budget is spent. A failure becomes a row that names it.
Needs an NVIDIA GPU; without one nothing is measured and nothing is written.

    python experiments/gpu_limits.py --minutes 8
"""

import functools
import importlib.util
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import common
import numpy as np
import pandas as pd
import torch
import typer
from gpu_timing import COPIES, backward_call, calls_of, inputs_of, times_s
from gpu_tuning import compile_defaults, tuned, verified

from scanlab.contract.base import DTYPES
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.report.formatting import between, milliseconds, per_second
from scanlab.report.tables import config_text
from scanlab.runtime import implementations
from scanlab.runtime import ops as mixer
from scanlab_kernels.selective_scan import bidirectional as directions
from scanlab_kernels.selective_scan import reference
from scanlab_kernels.selective_scan.triton import backend as triton

SHAPES = {
    "Vim-tiny 224, batch 64": {"batch": 64, "dim": 384, "length": 197, "direction": "bidirectional"},
    "Vim-tiny 224, batch 128": {"batch": 128, "dim": 384, "length": 197, "direction": "bidirectional"},
    "Vim-small 224, batch 64": {"batch": 64, "dim": 768, "length": 197, "direction": "bidirectional"},
    "Vim-small 224, batch 128": {"batch": 128, "dim": 768, "length": 197, "direction": "bidirectional"},
    "Vim-tiny 1248, batch 1": {"batch": 1, "dim": 384, "length": 6085, "direction": "bidirectional"},
    "Vim-tiny 1248, batch 8": {"batch": 8, "dim": 384, "length": 6085, "direction": "bidirectional"},
    "Mamba-130m, batch 8": {"batch": 8, "dim": 1536, "length": 2048},
    "Mamba-2.8b, batch 1": {"batch": 1, "dim": 5120, "length": 8192},
}
DEVICE = "cuda"
Row = dict[str, object]
Pair = Callable[[], tuple[torch.Tensor, torch.Tensor]]
MAX_PLAIN_STEPS = 512  # of a backward pass: the gradient of every step is as large as all states
IMAGES = {224: 64, 1248: 4}  # side in pixels: batch
IMAGE_MODELS = tuple(f"{kind}-{width}" for width in ("tiny", "small") for kind in ("Vim", "eager DeiT", "SDPA DeiT"))


def min_time_s(problem: ScanProblem, copy_s: float, exponential_s: float) -> float:
    """Return the least time of a scan, or of its backward pass alone where the problem has gradients.

    A scan takes one exponential for each state update, and two for each step of a channel: softplus and gate.

    Args:
        problem: The problem.
        copy_s: Seconds per byte copied.
        exponential_s: Seconds per exponential.
    """
    item = DTYPES[problem.dtype].itemsize
    elements = problem.state_updates // problem.state
    items = 7 if problem.gradients else 4  # u, delta, z, out; the backward pass reads four and writes three
    return max(items * item * elements * copy_s, (problem.state_updates + 2 * elements) * exponential_s)


def convolutions(problem: ScanProblem, seed: int) -> tuple[Pair, list[torch.Tensor]]:
    """Return a call of both short convolutions before a scan, and their inputs."""
    torch.manual_seed(seed)
    with torch.device(problem.device):
        x = torch.randn(problem.batch, problem.length, problem.dim).mT
        leaves = [x, *(torch.randn(problem.dim, *taps) for _ in range(2) for taps in ((4,), ()))]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    return lambda: mixer.causal_conv1d_bidirectional(*leaves, activation="silu"), leaves


def norms(problem: ScanProblem, seed: int) -> tuple[Pair, list[torch.Tensor]]:
    """Return a call of the residual add with norm of a block, half as wide as its scan, and its inputs."""
    torch.manual_seed(seed)
    with torch.device(problem.device):
        rows = [torch.randn(problem.batch, problem.length, problem.dim // 2) for _ in range(2)]
        leaves = [each.requires_grad_() for each in (*rows, torch.randn(problem.dim // 2))]
    return lambda: mixer.add_norm(*leaves), leaves


def neighbour_rows(name: str, problem: ScanProblem, copy_s: float) -> list[Row]:
    """Time the ops around the scan and PyTorch in their place, forward and backward; raise where the two disagree."""
    rows: list[Row] = []
    elements = problem.batch * problem.dim * problem.length
    for noun, (make, forth, back) in NEIGHBOURS.items():
        truth: list[torch.Tensor] | None = None
        for kind, where in {"plain PyTorch": mixer.in_torch, "triton": nullcontext}.items():
            with where():
                made = [make(problem, seed) for seed in range(COPIES)]
                backward = [backward_call(call(), leaves) for call, leaves in made]
                found = [*made[0][0](), *backward[0]()]
                truth = truth or found
                for one, other in zip(found, truth, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.detach().abs().max()))
                with torch.no_grad():
                    taken = {"forward": times_s([call for call, _ in made])}
                taken["backward"] = times_s(backward)
            for phase, items in (("forward", forth), ("backward", back)):
                row = {"shape": name, "phase": phase, "dtype": "float32", "run": f"{noun}, {kind}"}
                floor = items * 4 * elements * copy_s
                rows.append(row | taken[phase].columns() | {"min_time_s": floor})
    return rows


# float32 values read and written for each element of the scan's input, at least, forward and backward.
NEIGHBOURS = {"convolutions": (convolutions, 3, 4), "add and norm": (norms, 2, 2)}


def plain(problem: ScanProblem) -> Callable[..., ScanOutput]:
    """Return the loop over time in PyTorch."""
    return directions.directed(lambda inputs: reference.scan(inputs, problem), problem)


def official(problem: ScanProblem) -> Callable[..., ScanOutput]:
    """Return mamba_ssm's CUDA scan, called once for each direction."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def forward(inputs: ScanInputs) -> ScanOutput:
        given = inputs._asdict()
        given.pop("initial_state")
        out = selective_scan_fn(**given, delta_softplus=problem.delta_softplus, return_last_state=True)
        return ScanOutput(*out)

    return directions.directed(forward, problem)


def scan_row(
    name: str, problem: ScanProblem, kind: str, build: Callable[[ScanProblem], Callable[..., ScanOutput]], floor: float
) -> Row:
    """Time one implementation, on inputs in the layout that it was written for."""
    copies = COPIES if build is not plain else 1  # the graph of a loop in PyTorch keeps every step
    drawn = [inputs_of(problem, seed) for seed in range(copies)]
    phase = "backward" if problem.gradients else "forward"
    row = {"shape": name, "phase": phase, "dtype": problem.dtype, "run": kind}
    return row | times_s(calls_of(problem, build(problem), drawn)).columns() | {"min_time_s": floor}


def default(problem: ScanProblem) -> Callable[..., ScanOutput]:
    """Return the Triton scan with its default configuration."""
    return verified(problem, triton.backend.space.defaults)


def attempted(what: Row, measure: Callable[[], list[Row]]) -> list[Row]:
    """Return the rows that `measure` returns, or one that names its error; raise where the GPU is lost."""
    try:
        rows = measure()
    except Exception as error:  # noqa: BLE001 - a crash becomes a row, so that the others are still measured
        print(f"{what}: {type(error).__name__}: {error}", flush=True)
        rows = [what | {"run": f"{what['run']}: {type(error).__name__}"}]
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    for row in rows:
        print(
            "  ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()), flush=True
        )
    return rows


def image_row(name: str, size: int, batch: int, graphed: bool) -> Row:
    """Time a model under bfloat16 autocast, called or as a CUDA graph."""
    import vim_vs_deit  # its dependencies must not prevent the scans from being measured

    with torch.device(DEVICE):
        call = vim_vs_deit.ready(name, size, "float32", "triton", batch)
    with torch.autocast(DEVICE, torch.bfloat16):
        taken = times_s([captured(call) if graphed else call])
    run = f"{name}, CUDA graph" if graphed else name
    return {"shape": f"{size} x {size}, batch {batch}", "run": run, **taken.columns(), "images": batch}


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """Capture a call as a CUDA graph, and return the function that replays it."""
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def baseline_of(run: str, scans: bool) -> str:
    """Return the run that another one of the same shape and pass is compared with."""
    return "official CUDA" if scans else f"eager DeiT-{run.partition(',')[0].rpartition('-')[2]}"


COLUMNS = ["shape", "phase", "dtype", "run", "quartile1_s", "median_s", "quartile3_s", "host_s", "min_time_s", "images"]


def table(rows: list[Row]) -> pd.DataFrame:
    """Return the rows with shares of the floor, images per second and speed-ups, where these are defined."""
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS)
    frame["share_of_min_time"] = frame.min_time_s / frame.median_s
    frame["images_per_s"] = frame.images / frame.median_s
    places = list(zip(frame["shape"], frame.phase.astype(object).fillna(""), frame.run, strict=True))
    medians = dict(zip(places, frame.median_s, strict=True))
    others = [(shape, phase, baseline_of(run, scans=bool(phase))) for shape, phase, run in places]
    frame["times_as_fast"] = [medians.get(other, np.nan) for other in others] / frame.median_s
    return frame


def spelled(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text."""
    in_ms = 1e3 * frame[["quartile1_s", "median_s", "quartile3_s", "host_s", "min_time_s"]].astype(float)
    quartiles = zip(in_ms.quartile1_s, in_ms.quartile3_s, strict=True)
    return pd.DataFrame(
        {
            **{name: frame[name].astype(object).fillna("") for name in ("shape", "phase", "dtype", "run")},
            "median": in_ms.median_s.map(milliseconds),
            "quartiles": [between(low, high, milliseconds) for low, high in quartiles],
            "of the host": in_ms.host_s.map(milliseconds),
            "floor": in_ms.min_time_s.map(milliseconds),
            "share of the floor": [("" if np.isnan(share) else f"{share:.0%}") for share in frame.share_of_min_time],
            "times as fast": [("" if np.isnan(times) else f"{times:.2f}") for times in frame.times_as_fast],
            "images": frame.images_per_s.astype(float).map(per_second),
        }
    )


def measured(drawn: int, budget_s: float, compilers: Executor, rates_s: tuple[float, float]) -> Iterator[list[Row]]:
    """Yield the rows of each step: default scans, official scans, models, the ops around the scan, tuned scans."""
    deadline = time.monotonic() + budget_s
    problems = [
        (name, ScanProblem(**shape, device=DEVICE, layout="dim_last", gradients=gradients))  # type: ignore[arg-type]
        for gradients in (False, True)
        for name, shape in SHAPES.items()
    ]
    yield attempted({"run": "compiled"}, lambda: compile_defaults([problem for _, problem in problems], compilers))

    def of_all(
        kind: str, layout: str, build: Callable[[ScanProblem], Callable[..., ScanOutput]]
    ) -> Iterator[list[Row]]:
        for name, problem in problems:
            if build is plain and problem.gradients and problem.length > MAX_PLAIN_STEPS:
                continue
            row = functools.partial(
                scan_row, name, problem.replace(layout=layout), kind, build, min_time_s(problem, *rates_s)
            )
            yield attempted({"shape": name, "run": kind}, lambda row=row: [row()])

    yield from of_all("triton, default", "dim_last", default)
    if importlib.util.find_spec("selective_scan_cuda") is not None:
        yield from of_all("official CUDA", "length_last", official)
    for size, batch in IMAGES.items():
        for name, graphed in itertools.product(IMAGE_MODELS, (False, True)):
            image = functools.partial(image_row, name, size, batch, graphed)
            yield attempted({"shape": f"{size} x {size}, batch {batch}", "run": name}, lambda image=image: [image()])
    for name, problem in problems:
        if problem.direction == "bidirectional" and not problem.gradients:
            rows = functools.partial(neighbour_rows, name, problem, rates_s[0])
            yield attempted({"shape": name, "run": "the ops around the scan"}, rows)
    yield from of_all("plain PyTorch", "length_last", plain)
    for number, (name, problem) in enumerate(problems):
        now = time.monotonic()
        until = now + (deadline - now) / (len(problems) - number)
        if now > deadline:
            print(f"no time is left to tune {name}", flush=True)
            continue
        yield attempted(
            {"shape": name, "run": "triton, tuned"},
            functools.partial(tuned_rows, name, problem, drawn, until, compilers, min_time_s(problem, *rates_s)),
        )


def tuned_rows(
    name: str, problem: ScanProblem, count: int, until_s: float, compilers: Executor, floor: float
) -> list[Row]:
    """Time the fastest configuration that a search finds."""
    best, said = tuned(problem, count, until_s, compilers)
    default = triton.with_segments(triton.backend.space.defaults, problem)
    changed = config_text({name: value for name, value in best.items() if value != default[name]}) or "as the default"
    return [scan_row(name, problem, f"triton, tuned: {changed}; {said}", lambda each: verified(each, best), floor)]


def unusable() -> str | None:
    """Return why nothing can be measured here, or None."""
    if triton.INTERPRETED:
        return "the interpreter is switched on; unset TRITON_INTERPRET."
    return triton.unavailable() or (None if mixer.implementation("cuda") == "triton" else implementations.explain())


def main(
    drawn: Annotated[int, typer.Option(help="Configurations drawn for each shape beside the default.")] = 24,
    minutes: Annotated[float, typer.Option(help="Minutes after which to stop tuning.")] = 8.0,
    out: Path = common.RESULTS / "gpu_limits",
) -> None:
    """Measure the limits of the GPU and every shape, and write the page after each step."""
    reason = unusable()
    if reason is not None:
        raise SystemExit(f"gpu_limits measures a GPU, and none can be used here: {reason}")
    import gpu_ceiling

    torch.backends.cudnn.allow_tf32 = False  # PyTorch's convolutions are the reference
    setting = common.setting()
    rates_s = gpu_ceiling.seconds_each()
    limits = f"{1e-9 / rates_s[0]:.0f} GB/s copied, {1e-9 / rates_s[1]:.0f} G exponentials/s"
    caption = f"{torch.cuda.get_device_name()}; {setting}; {limits}; {implementations.explain()}"
    print(caption, flush=True)
    rows: list[Row] = []
    workers = max(1, (os.cpu_count() or 1) - 2)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as compilers:
        for found in measured(drawn, 60.0 * minutes, compilers, rates_s):
            rows += found
            frame = table(rows)
            common.write_page(out, __doc__, caption, {}, {"Limits": spelled(frame)}, frame)


if __name__ == "__main__":
    typer.run(main)
