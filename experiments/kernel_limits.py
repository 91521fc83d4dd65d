"""The native kernel reaches a measured share of the arithmetic throughput of its machine.

The ceiling is the arithmetic of the scan between registers alone (the exponential that the kernel takes by default, one
more product and two fused products for each state update, denormals flushed), measured in the same rounds as the
kernel. Ratios are taken round by round; the table has their median and quartiles. One thread is timed by its own CPU
time, which neighbours do not take from; two threads by the clock, which they do. The gain of two
threads of pure arithmetic over one tells whether the machine gave two cores at that time: two virtual CPUs may be one.

    python experiments/kernel_limits.py --rounds 40
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import common
import numpy as np
import pandas as pd
import torch
import typer
from handover import handover

from scanlab.contract import registry
from scanlab.contract.problem import ScanInputs, ScanProblem, make_inputs
from scanlab.contract.space import Config
from scanlab_kernels.build import Extension, Unit
from scanlab_kernels.cpu.isa import INSTRUCTION_SETS, chosen_isa, isa_index
from scanlab_kernels.selective_scan.native import backend as native

HERE = Path(__file__).parent
SHAPES = ((1, 384, 197), (8, 384, 197), (1, 1536, 2048))
ALONE, BOTH = {"threads": 1, "channel_tile": 384}, {"threads": 2, "channel_tile": 64}
CEILING_REPEATS = 20_000
LONG_REPEATS = 20 * CEILING_REPEATS  # beside which waking a Python thread is nothing
ROUND_S = 0.02

ISA = chosen_isa()
ceiling = Extension(
    name="kernel_ceiling",
    units=(Unit(HERE / "kernel_ceiling.cpp", INSTRUCTION_SETS[isa_index(ISA)].flags),),
    flags=("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)


def problem(batch: int, dim: int, length: int, **fields: object) -> ScanProblem:
    """Return the scan of Vim and Mamba: softplus, bias, D and z on, channels last."""
    return ScanProblem(batch=batch, dim=dim, length=length, layout="dim_last", **fields)  # type: ignore[arg-type]


def inputs_of(asked: ScanProblem) -> ScanInputs:
    """Return inputs whose B and C are slices of a projection's output, as in the models."""
    inputs = make_inputs(asked)[0]
    return inputs._replace(B=inputs.B.mT.contiguous().mT, C=inputs.C.mT.contiguous().mT)


def scan(asked: ScanProblem, config: Config) -> common.Call:
    """Return one call of the kernel."""
    inputs, run = inputs_of(asked), native.backend.build(asked, config)
    return lambda: run(inputs)


def train(asked: ScanProblem, config: Config) -> common.Call:
    """Return one call of the forward and the backward pass."""
    inputs = ScanInputs(*(tensor.requires_grad_() for tensor in inputs_of(asked).tensors().values()))
    run, weights = native.backend.build(asked.replace(gradients=True), config), torch.randn_like(inputs.u)
    return lambda: torch.autograd.grad(run(inputs).out, tuple(inputs.tensors().values()), weights)


def best_s(call: common.Call, clock: Callable[[], float]) -> float:
    """Return the shortest time of the calls that fit into a round, at least three."""
    samples: list[float] = []
    while len(samples) < 3 or sum(samples) < ROUND_S:
        start = clock()
        call()
        samples.append(clock() - start)
    return min(samples)


def ratios(
    one: common.Call, other: common.Call, rounds: int, clock: Callable[[], float] = time.thread_time
) -> list[float]:
    """Time of `one` over time of `other`, round by round; the first round warms up."""
    return [best_s(one, clock) / best_s(other, clock) for _ in range(rounds + 1)][1:]


def largest_error() -> float:
    """Return the largest error of the output against the float64 reference, as a share of the largest value."""
    worst = 0.0
    for batch, dim, length in ((1, 384, 197), (2, 40, 1000), (1, 16, 4096)):
        asked = problem(batch, dim, length)
        inputs = inputs_of(asked)
        right = registry.get("reference").build(asked.replace(dtype="float64"))(
            ScanInputs(**{name: tensor.double() for name, tensor in inputs.tensors().items()})
        )
        got = native.backend.build(asked)(inputs)
        worst = max(worst, float((got.out - right.out).abs().max() / right.out.abs().max()))
    return worst


def measured(rounds: int) -> list[tuple[str, str, list[float]]]:
    """Return for each measurement its description, the expected ratio, and the ratios."""
    seeds = torch.linspace(-0.5, 0.5, 64)
    updates = torch.ops.scanlab_ceiling.updates(seeds, CEILING_REPEATS)
    limit = lambda: torch.ops.scanlab_ceiling.updates(seeds, CEILING_REPEATS)  # noqa: E731
    both_cpus = ThreadPoolExecutor(2)
    once = lambda: torch.ops.scanlab_ceiling.updates(seeds, LONG_REPEATS)  # noqa: E731
    twice = lambda: list(both_cpus.map(lambda _: once(), range(2)))  # noqa: E731
    rows = []
    for shape in SHAPES:
        asked = problem(*shape)
        shares = [share * asked.state_updates / updates for share in ratios(limit, scan(asked, ALONE), rounds)]
        rows.append((f"{asked.key}: share of the ceiling, 1 thread", "0.70, aim 0.80", shares))
    few = problem(1, 16, 65536)
    scalings = [(problem(*shape), BOTH, "1.8, aim 1.95") for shape in SHAPES]
    for asked, config, wanted in (*scalings, (few, BOTH | {"time_chunks": 2}, "1.6, aim 1.9")):
        one, both = scan(asked, ALONE), scan(asked, config)
        ours, machine = [], []
        for _ in range(rounds):
            ours += ratios(one, both, 1, time.perf_counter)
            machine += [2.0 * ratio for ratio in ratios(once, twice, 1, time.perf_counter)]
        chunks = ", in chunks of time" if "time_chunks" in config else ""
        rows.append((f"{asked.key}: 2 threads over 1{chunks}", wanted, ours))
        rows.append(("the same of arithmetic between registers, in the same rounds", "", machine))
    short, long = problem(1, 384, 197), problem(1, 384, 65536)
    per_token = [each * 197 / 65536 for each in ratios(scan(long, ALONE), scan(short, ALONE), max(3, rounds // 10))]
    rows.append(("dim=384: time per token at length 65536 over length 197", "1.0, within 0.1", per_token))
    for shape, config, clock in (((1, 384, 8192), ALONE, time.thread_time), ((1, 1536, 8192), BOTH, time.perf_counter)):
        half, wide = (scan(problem(*shape, dtype=dtype), config) for dtype in ("bfloat16", "float32"))
        label = f"{problem(*shape).key}: bfloat16 over float32, threads={config['threads']}"
        rows.append((label, "at most 1.0", ratios(half, wide, rounds, clock)))
    for shape in ((8, 384, 197), (1, 1536, 512)):
        asked = problem(*shape)
        rows.append(
            (
                f"{asked.key}: forward and back over forward",
                "4, aim 3",
                ratios(train(asked, ALONE), scan(asked, ALONE), rounds),
            )
        )
    return rows


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of each comparison.")] = 40,
    out: Path | None = None,
) -> None:
    """Measure every row and write the table, by default on a page of this processor and instruction set."""
    out = out or common.RESULTS / "kernel_limits" / f"{common.silicon_name()}-{ISA}"
    caption = f"{common.setting()}; {ISA}, {rounds} rounds; {handover()}"
    ceiling.load()
    with torch.inference_mode(False):
        rows = measured(rounds)
    frame = pd.DataFrame(
        [
            {
                "measured": name,
                "asked": asked,
                **dict(zip(("quartile1", "median", "quartile3"), np.quantile(taken, (0.25, 0.5, 0.75)), strict=True)),
            }
            for name, asked, taken in rows
        ]
    )
    frame.loc[len(frame)] = [
        "largest error of the output, share of its largest value",
        "1e-6, aim 3e-7",
        *(3 * [largest_error()]),
    ]
    extra = common.fresh_peak_bytes(train, problem(1, 1536, 2048), ALONE)
    if extra is not None:
        gradients = 3 * 1536 * 2048 * 4
        frame.loc[len(frame)] = [
            "(1, 1536, 2048): MB of forward and back beyond out and the gradients",
            "64, aim 32",
            *(3 * [(extra - gradients - gradients / 3) / 1e6]),
        ]
    text = frame.assign(**{name: frame[name].map("{:.3g}".format) for name in ("quartile1", "median", "quartile3")})
    common.write_page(out.parent, __doc__, caption, {}, {"Limits": text}, frame, name=out.name)
    print(text.to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
