"""The Triton scan and its neighbours beside the limits of the GPU they run on.

The floor of a scan is the larger of two times: its bytes at the speed at which this GPU copies, and its exponentials
at the rate of its special-function unit, both measured here; that of the convolution and of the norm is their bytes.
Every configuration is held to the oracle before it is timed, and the ops around the scan to PyTorch's. Times are
medians of CUDA events over inputs that take turns, so that no cache keeps them. Official is mamba_ssm's CUDA scan,
where it is installed, run once in each direction. Vision Mamba computes with all of these kernels; where they cannot
serve nothing is measured. Needs an NVIDIA GPU; without one nothing is measured and nothing is written.

    python experiments/gpu_limits.py --drawn 24
"""

import importlib.util
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import common
import numpy as np
import pandas as pd
import torch
import typer
import vim_vs_deit

from scanlab import mixer
from scanlab.errors import RejectedError
from scanlab.kernels import directions, reference, triton
from scanlab.lab.verify import expectation, verify
from scanlab.problem import DTYPES, ScanInputs, ScanProblem, make_inputs
from scanlab.space import Config, config_key

NO_GPU = "gpu_limits measures a GPU, and none can be used here: {}"
WAYS = "bidirectional"
SHAPES = {
    "Vim-tiny 224, batch 64": {"batch": 64, "dim": 384, "length": 197, "direction": WAYS},
    "Vim-tiny 224, batch 128": {"batch": 128, "dim": 384, "length": 197, "direction": WAYS},
    "Vim-small 224, batch 64": {"batch": 64, "dim": 768, "length": 197, "direction": WAYS},
    "Vim-small 224, batch 128": {"batch": 128, "dim": 768, "length": 197, "direction": WAYS},
    "Vim-tiny 1248, batch 1": {"batch": 1, "dim": 384, "length": 6085, "direction": WAYS},
    "Vim-tiny 1248, batch 8": {"batch": 8, "dim": 384, "length": 6085, "direction": WAYS},
    "Mamba-130m, batch 8": {"batch": 8, "dim": 1536, "length": 2048},
    "Mamba-2.8b, batch 1": {"batch": 1, "dim": 5120, "length": 8192},
}
ROTATION, REPEATS = 3, 30
Pair = Callable[[], tuple[torch.Tensor, torch.Tensor]]
IMAGES = {224: 64, 1248: 4}  # side in pixels: batch


def times_s(calls: Sequence[Callable[[], object]], repeats: int = REPEATS) -> np.ndarray:
    """Seconds of calls that take turns, by CUDA events; the first turn of all warms up."""
    taken = []
    for turn in range(len(calls) + repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        calls[turn % len(calls)]()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / 1e3)
    return np.array(taken[len(calls) :])


def floor_s(problem: ScanProblem, copy_s: float, exponential_s: float) -> float:
    """The least time of a scan (forward, or the way back of one with gradients), from the seconds of a byte copied and
    of an exponential: one for each state update and two for each step of a channel, for step size and gate."""
    item = DTYPES[problem.dtype].itemsize
    elements = problem.state_updates // problem.state
    items = 7 if problem.gradients else 4  # u, delta, z, out; the way back reads four and writes three
    return max(items * item * elements * copy_s, (problem.state_updates + 2 * elements) * exponential_s)


def calls_of(problem: ScanProblem, run: Callable[..., object]) -> list[Callable[[], object]]:
    """Calls of a scan on inputs that take turns; with gradients, of the way back alone."""
    calls: list[Callable[[], object]] = []
    for seed in range(ROTATION):
        inputs = make_inputs(problem, seed)
        if not problem.gradients:
            calls.append(lambda inputs=inputs: run(*inputs))
            continue
        leaves = tuple(
            each.with_tensors(**{name: tensor.requires_grad_() for name, tensor in each.tensors().items()})
            for each in inputs
        )
        calls.append(way_back(run(*leaves)[:1], [tensor for each in leaves for tensor in each.tensors().values()]))
    return calls


def way_back(outs: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A call that computes the gradients of the leaves anew each time."""
    weights = [torch.randn_like(out) for out in outs]
    return lambda: torch.autograd.grad(outs, leaves, weights, retain_graph=True)


def convolutions(problem: ScanProblem, seed: int) -> tuple[Pair, list[torch.Tensor]]:
    """Both short convolutions in front of a scan, and what they are computed of."""
    torch.manual_seed(seed)
    with torch.device(problem.device):
        x = torch.randn(problem.batch, problem.length, problem.dim).mT
        leaves = [x, *(torch.randn(problem.dim, *taps) for _ in range(2) for taps in ((4,), ()))]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    return lambda: mixer.causal_conv1d_bidirectional(*leaves, activation="silu"), leaves


def norms(problem: ScanProblem, seed: int) -> tuple[Pair, list[torch.Tensor]]:
    """The residual add with norm of a block, which is half as wide as its scan, and what it is computed of."""
    torch.manual_seed(seed)
    with torch.device(problem.device):
        rows = [torch.randn(problem.batch, problem.length, problem.dim // 2) for _ in range(2)]
        leaves = [each.requires_grad_() for each in (*rows, torch.randn(problem.dim // 2))]
    return lambda: mixer.add_norm(*leaves), leaves


def neighbour_rows(name: str, problem: ScanProblem, copy_s: float) -> list[dict[str, object]]:
    """A row for each op around the scan and for PyTorch in its place, each way; raises where the two disagree."""
    rows, elements = [], problem.batch * problem.dim * problem.length
    for noun, (make, forth, back) in NEIGHBOURS.items():
        truth: list[torch.Tensor] | None = None
        for kind, where in {"plain PyTorch": mixer.in_torch, "triton": nullcontext}.items():
            with where():
                made = [make(problem, seed) for seed in range(ROTATION)]
                backward = [way_back(call(), leaves) for call, leaves in made]
                found = [*made[0][0](), *backward[0]()]
                truth = truth or found
                for one, other in zip(found, truth, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.detach().abs().max()))
                with torch.no_grad():
                    taken = {"forward": times_s([call for call, _ in made])}
                taken["backward"] = times_s(backward)
            for way, items in (("forward", forth), ("backward", back)):
                row = {"shape": name, "way": way, "dtype": "float32", "run": f"{noun}, {kind}"}
                floor = items * 4 * elements * copy_s
                rows.append(row | common.quartiles_s(taken[way]) | {"floor_s": floor})
    return rows


# How many float32 of each element of the scan's input are read and written, at least, forward and on the way back.
NEIGHBOURS = {"convolutions": (convolutions, 3, 4), "add and norm": (norms, 2, 2)}


def proven(problem: ScanProblem, config: Config) -> Callable[..., object]:
    """The scan under a configuration, after it agreed with the oracle at a batch of 1; raises where it does not."""
    small = problem.replace(batch=1, dim=128, length=min(problem.length, 400))
    verdict = verify(triton.backend.build(small, config), expectation(small, make_inputs(small)))
    if not verdict.passed:
        raise RejectedError(f"{config_key(config)} is wrong: {verdict.reason}")
    return triton.backend.build(problem, config)


def candidates(problem: ScanProblem, count: int) -> list[Config]:
    """Legal configurations drawn at random, each tunable from its own values."""
    drawn: list[Config] = []
    random.seed(0)
    space = triton.backend.space
    while len(drawn) < count:
        config = {choice.name: random.choice(choice.values) for choice in space.choices}
        if not problem.gradients:
            config |= {name: space.defaults[name] for name in triton.FOR_GRADIENTS}
        if space.forbids(config, problem) is None and config not in drawn:
            drawn.append(config)
    return drawn


def tuned(problem: ScanProblem, count: int) -> tuple[Config, int]:
    """The fastest of the default and `count` drawn configurations, and how many were refused before they ran."""
    best, best_s, refused = triton.backend.space.defaults, np.inf, 0
    for config in [best, *candidates(problem, count)]:
        try:
            taken = float(np.median(times_s(calls_of(problem, proven(problem, config)), repeats=ROTATION * 2)))
        except RejectedError as error:
            print(error)
            refused += 1
            continue
        if taken < best_s:
            best, best_s = config, taken
    return best, refused


def plain(problem: ScanProblem) -> Callable[..., object]:
    """The loop over time in PyTorch."""
    return directions.directed(lambda inputs: reference.scan(inputs, problem), problem)


def official(problem: ScanProblem) -> Callable[..., object] | None:
    """mamba_ssm's CUDA scan, once in each direction, or None where it is not installed."""
    if importlib.util.find_spec("selective_scan_cuda") is None:
        return None
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def forward(inputs: ScanInputs) -> object:
        given = inputs._asdict()
        given.pop("initial_state")
        out = selective_scan_fn(**given, delta_softplus=problem.delta_softplus, return_last_state=True)
        return triton.ScanOutput(*out)

    return directions.directed(forward, problem)


def scan_rows(
    name: str, problem: ScanProblem, count: int, copy_s: float, exponential_s: float
) -> list[dict[str, object]]:
    """A row for each implementation: quartiles, and the share of the floor."""
    best, refused = tuned(problem, count)
    runs = {
        "triton, default": proven(problem, {}),
        f"triton, tuned: {config_key(best)}, {refused} refused": proven(problem, best),
        "plain PyTorch": plain(problem),
        "official CUDA": official(problem),
    }
    least = floor_s(problem, copy_s, exponential_s)
    rows = []
    for kind, run in runs.items():
        if run is not None:
            quartiles = common.quartiles_s(times_s(calls_of(problem, run)))
            way = "backward" if problem.gradients else "forward"
            rows.append({"shape": name, "way": way, "dtype": problem.dtype, "run": kind, **quartiles, "floor_s": least})
    return rows


def image_rows() -> list[dict[str, object]]:
    """Images per second of Vim and of DeiT with SDPA and eager attention, in bfloat16 where torch sees fit."""
    rows = []
    for size, batch in IMAGES.items():
        for name in vim_vs_deit.MODELS:
            with torch.device("cuda"), torch.autocast("cuda", torch.bfloat16):
                taken = common.quartiles_s(times_s([vim_vs_deit.ready(name, size, "triton", batch)]))
            rows.append({"shape": f"{size} x {size}, batch {batch}", "run": name, **taken, "images": batch})
    return rows


def table(rows: list[dict[str, object]]) -> pd.DataFrame:
    """The rows with shares of the floor and images per second, where these mean anything."""
    frame = pd.DataFrame(rows)
    frame["share_of_floor"] = frame.floor_s / frame.median_s
    frame["images_per_s"] = frame.images / frame.median_s
    return frame


def main(
    drawn: Annotated[int, typer.Option(help="Configurations drawn for each shape beside the default.")] = 24,
    out: Path = common.RESULTS / "gpu_limits",
) -> None:
    """Measure the ceilings and every shape, and write the table."""
    reason = triton.unavailable() or (triton.INTERPRETED and "the interpreter is switched on; unset TRITON_INTERPRET.")
    if reason:
        raise SystemExit(NO_GPU.format(reason))
    if mixer.implementation("cuda") != "triton":
        raise SystemExit(NO_GPU.format(mixer.explain()))
    import gpu_ceiling

    (copy, moved), (compute, computed) = gpu_ceiling.copy_calls(), gpu_ceiling.exponential_calls()
    copy_s, exponential_s = (float(np.median(times_s([call]))) / n for call, n in ((copy, moved), (compute, computed)))
    rows = []
    for name, shape in SHAPES.items():
        for gradients in (False, True):
            problem = ScanProblem(**shape, device="cuda", layout="dim_last", gradients=gradients)  # type: ignore[arg-type]
            rows += scan_rows(name, problem, drawn, copy_s, exponential_s)
        if problem.direction == WAYS:
            rows += neighbour_rows(name, problem, copy_s)
    rows += image_rows()
    frame = table(rows)
    ceilings = f"{1e-9 / copy_s:.0f} GB/s copied, {1e-9 / exponential_s:.0f} G exponentials/s"
    caption = f"{torch.cuda.get_device_name()}; {common.setting()}; {ceilings}; {mixer.explain()}"
    common.write_page(out, __doc__, caption, {}, {"Limits": frame}, frame)
    print(frame.to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
