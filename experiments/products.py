"""The implementation that serves an op around the scan takes at most 1.1 times as long as the fastest.

Every matrix product of Vim-tiny, -small and -base at 224 and of mamba-130m (a token, and a prompt of 512), and the
other ops of their blocks, by each implementation that runs here, in float32 and bfloat16, on one thread and on all. The
implementations of a problem are timed in the same interleaved rounds, beside torch's own; the making of prepacked
weights is not timed. A product for a token multiplies with the weights of 24 layers in turn: as in a model, they come
from memory. A sample is the mean of calls that take 2 ms; the fastest sample counts. Served is the backend
that serves where nothing was tuned: the defaults that ship, which this script writes.

    python experiments/products.py --rounds 12
    python experiments/products.py --rounds 12 --write-defaults amx    # into scanlab/runtime/defaults_amx.toml
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import common
import numpy as np
import pandas as pd
import torch
import typer

from scanlab.bench.timing import calibrate, call_of, input_copies, take_round
from scanlab.contract import registry
from scanlab.contract.backend import OpFn
from scanlab.contract.base import Problem
from scanlab.contract.cpu import torch_threads, usable_threads
from scanlab.contract.machine import this_machine
from scanlab.contract.op import Inputs
from scanlab.report.formatting import memory, percent, times
from scanlab.runtime.decisions import decide
from scanlab.runtime.defaults import clear as clear_defaults
from scanlab_kernels.add_norm.op import AddNormProblem
from scanlab_kernels.causal_conv1d.op import ConvProblem
from scanlab_kernels.linear.op import LinearProblem
from scanlab_kernels.linear.weights import PrepackedWeight
from scanlab_kernels.mamba_front.op import FrontProblem
from scanlab_kernels.state_update.op import StateUpdateProblem

DEFAULTS = Path(__file__).parents[1] / "scanlab" / "runtime"
TOKENS, PROMPT, STATE, VOCABULARY, CLASSES = 197, 512, 16, 50280, 1000
# Name, width, and the numbers of rows of a model; Vision Mamba scans in both directions.
MODELS = {
    "vim-tiny": (192, (TOKENS,), True),
    "vim-small": (384, (TOKENS,), True),
    "vim-base": (768, (TOKENS,), True),
    "mamba-130m": (768, (1, PROMPT), False),
}
# Processors that have all of these instruction sets are of one kind.
DECIDING = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
OPS = ("linear", "causal_conv1d", "add_norm", "mamba_front", "state_update")
LAYERS = 24
# An implementation that is no faster than this over torch's own is not worth a default.
WORTH = 1.03


class Place(NamedTuple):
    """A problem of a model, its name there, and the number of rows that the model is called with."""

    model: str
    name: str
    rows: int
    problem: Problem


def places() -> Iterator[Place]:
    """Yield the problems of every model in float32."""
    for name, (model, every_rows, is_vision) in MODELS.items():
        dim, rank = 2 * model, -(-model // 16)
        for rows in every_rows:
            products = {
                "in_proj": (rows, model, 2 * dim),
                "x_proj": (rows, dim, rank + 2 * STATE),
                "dt_proj": (rows, rank, dim),
                "out_proj": (rows, dim, model),
                "head": (1, model, CLASSES if is_vision else VOCABULARY),
            }
            for product, (number, into, out) in products.items():
                if product != "head" or rows == every_rows[0]:
                    yield Place(name, product, number, LinearProblem(rows=number, in_features=into, out_features=out))
            yield Place(name, "norm", rows, AddNormProblem(rows=rows, dim=model, residual_in_fp32=True))
            if rows == 1:
                yield Place(name, "step", rows, StateUpdateProblem(batch=1, dim=dim, state=STATE, log_A=True))
                continue
            direction = "bidirectional" if is_vision else "forward"
            conv = ConvProblem(batch=1, dim=dim, length=rows, direction=direction, layout="dim_last")
            yield Place(name, "conv1d", rows, conv)
            sizes = {"batch": 1, "length": rows, "model": model, "dim": dim, "rank": rank, "state": STATE}
            yield Place(name, "front", rows, FrontProblem(**sizes, direction=direction))


def candidates(problem: Problem) -> Iterator[tuple[str, OpFn]]:
    """Yield every implementation of a problem that runs here, torch's own first, and the selection that names it."""
    for backend in registry.load_all(problem.op)[0]:
        if backend.unavailable() or backend.rejects(problem) or backend.explicit_only:
            continue
        for config in backend.space.configs(problem):
            if config.get("threads", 0) == 0 and config.get("conv") in (None, "native"):
                parts = ",".join(f"{name}={config[name]}" for name in ("linear", "conv") if name in config)
                yield ":".join(filter(None, (backend.name, parts))), backend.build(problem, config)


def prepacked_bytes(problem: Problem, function: OpFn) -> int:
    """Return the bytes that an implementation of a product keeps beside the weight."""
    if not isinstance(problem, LinearProblem):
        return 0
    (inputs,) = registry.op(problem.op).make_inputs(problem, 0)
    holder = PrepackedWeight(inputs.weight)
    with torch.no_grad():
        function(inputs._replace(prepacked=holder))
    return holder.prepacked_bytes


def input_copies_of(problem: Problem, name: str) -> Sequence[Inputs]:
    """Return inputs of a problem that calls take in turn; of a token's product with every layer's weight."""
    make_inputs = registry.op(problem.op).make_inputs
    if not isinstance(problem, LinearProblem) or problem.rows > 1 or name == "head":
        return input_copies(make_inputs(problem, 0))
    every_layer = [make_inputs(problem, layer)[0] for layer in range(LAYERS)]
    return [(inputs._replace(prepacked=PrepackedWeight(inputs.weight)),) for inputs in every_layer]


def measured(place: Place, dtype: str, threads: int, rounds: int, rng: random.Random) -> Iterator[dict[str, object]]:
    """Yield a row for each implementation of a problem: its fastest sample, which a neighbour can only lengthen."""
    problem = place.problem.replace(dtype=dtype)
    copies = input_copies_of(problem, place.name)
    functions = dict(candidates(problem))
    with torch_threads(threads):
        calls = [calibrate(call_of(each, problem, copies), "cpu", threads) for each in functions.values()]
    taken = [take_round(calls, calls[0], rng, number) for number in range(rounds)]
    facts = {
        "model": place.model,
        "op": place.name,
        "rows": place.rows,
        "op_name": problem.op,
        "problem": problem.key,
        "dtype": dtype,
        "threads": threads,
    }
    fastest = [min(ns for blocks in taken for ns in blocks[position].candidate_ns) for position in range(len(calls))]
    for (name, function), ns in zip(functions.items(), fastest, strict=True):
        yield facts | {
            "implementation": name,
            "us": ns / 1e3,
            "over_torch": ns / fastest[0],
            "prepacked_bytes": prepacked_bytes(problem, function),
            "disturbed": sum(blocks[0].disturbed is not None for blocks in taken),
        }


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each problem, dtype and number of threads: the times, and the choice over the fastest."""
    lines = []
    kinds = ["model", "op", "rows", "op_name", "problem", "dtype", "threads"]
    for (model, op, rows, op_name, key, dtype, threads), group in frame.groupby(kinds, sort=False):
        fastest = group.loc[group.over_torch.idxmin()]
        serving = decide(registry.parse_problem(key, op_name), None).backend
        serves = group[group.implementation.str.partition(":")[0] == serving]
        over = serves.over_torch.min() / fastest.over_torch
        lines.append(
            {
                "model": model,
                "op": op,
                "rows": str(rows),
                "dtype": dtype,
                "threads": str(threads),
                **{_short(name): f"{us:.3g}" for name, us in zip(group.implementation, group.us, strict=True)},
                "serves": _short(serving),
                "over the fastest": times(over),
            }
        )
    return pd.DataFrame(lines).fillna("")


def _short(name: str) -> str:
    """Return a selection without the name of its op."""
    for op in OPS:
        name = name.removeprefix(f"{op}_")
    return name.removesuffix(",conv=native").replace("composed:linear=", "of ")


def defaults_toml(frame: pd.DataFrame, source: str) -> str:
    """Return the text of a file of defaults: for each problem the implementations, by their speed-up over torch.

    The speed-up is the geometric mean over the numbers of threads. Without a gain torch's own is named alone.
    """
    silicon = this_machine().silicon
    flags = [flag for flag in DECIDING if flag in silicon.flags]
    lines = [
        "# The fastest ops around the scan on one kind of silicon, over torch's own op.",
        f"# Written by `python experiments/products.py --write-defaults`; {source} has the times.",
        f"vendor = {json.dumps(silicon.vendor)}",
        f"flags = {json.dumps(flags)}",
        f"machine = {json.dumps(silicon.model_name)}",
        f"instruction_set = {json.dumps(silicon.instruction_set)}",
        f"cpus = {silicon.usable_cpus}",
        f"source = {json.dumps(source)}",
    ]
    for op, of_op in frame.groupby("op_name", sort=False):
        lines += ["", f"[ops.{op}]"]
        for problem, group in of_op.groupby("problem", sort=False):
            speedups = np.exp(-np.log(group.over_torch).groupby(group.implementation).mean()).sort_values(
                ascending=False
            )
            gains = speedups[speedups >= WORTH * speedups[group.implementation.iloc[0]]]
            entries = ", ".join(f"{json.dumps(name)} = {speedup:.3g}" for name, speedup in gains.items())
            lines.append(f"{json.dumps(problem)} = {{ {entries} }}")
    return "\n".join(lines) + "\n"


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of each problem.")] = 12,
    models: Annotated[str, typer.Option(help="Only these, separated by commas.")] = ",".join(MODELS),
    write_defaults: Annotated[str | None, typer.Option(help="Name of the silicon, for the defaults that ship.")] = None,
    out: Path = common.RESULTS / "products",
) -> None:
    """Measure, and write the page and its numbers under the name of the silicon."""
    caption = common.setting()
    rng = random.Random(0)
    counts = sorted({1, usable_threads()})
    chosen = [place for place in places() if place.model in models.split(",")]
    rows = []
    for dtype in ("float32", "bfloat16"):
        for place in chosen:
            for threads in counts:
                rows += measured(place, dtype, threads, rounds, rng)
                print(place.model, place.name, dtype, threads, flush=True)
    frame = pd.DataFrame(rows)
    name = common.silicon_name()
    if write_defaults is not None:
        text = defaults_toml(frame, f"results/products/{name}.md")
        (DEFAULTS / f"defaults_{write_defaults}.toml").write_text(text)
        clear_defaults()
    text = table(frame)
    kept = frame.drop_duplicates(["problem", "implementation"])
    share = frame.disturbed.sum() / (rounds * len(frame))
    prepacked = ", ".join(
        f"{_short(implementation)} {memory(group.prepacked_bytes.sum())}"
        for implementation, group in kept[kept.prepacked_bytes > 0].groupby("implementation", sort=False)
    )
    caption += f"; {rounds} rounds each, {percent(share)} of them disturbed by others; times in us"
    caption += f"; prepacked weights of all products, in memory beside them: {prepacked}"
    sections = {f"{dtype}": text[text.dtype == dtype].drop(columns="dtype") for dtype in ("float32", "bfloat16")}
    common.write_page(out, __doc__, caption, {}, sections, frame, name=name)
    print(text.to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
