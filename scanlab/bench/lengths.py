"""Time against sequence length: one configuration of each backend over a row of lengths, within a budget."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from scanlab.bench.clock import MeasuringClock, QuietWait
from scanlab.bench.compare import Comparer
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.records import Trial
from scanlab.bench.samples import Measurement
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import open_worker
from scanlab.contract import registry
from scanlab.contract.problem import Problem

# Each is a comparison of its own on drawn inputs, because no model produces every length.
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
# Calls that a candidate needs in a comparison at least: it is verified, calibrated, and timed in a few rounds.
MIN_CALLS = 16


def sweep_lengths(
    problem: Problem,
    candidates: Sequence[Candidate],
    store: TrialStore,
    clock: MeasuringClock,
    deadline: float,
    seed: int = 0,
    lengths: Sequence[int] = LENGTHS,
    on_length: Callable[[int], None] = lambda length: None,
) -> tuple[Trial, ...]:
    """Time `candidates` at each length of `problem` in turn, shortest first, until `deadline` of `clock`.

    A candidate whose next length is not expected to fit, or whose configuration is not legal for it, stops there: a
    line in the plot ends where there was no time, it is never guessed. The fastest are kept longest. Every trial is
    verified, and appended to `store` in the phase "lengths".
    """
    taken: list[Trial] = []
    call_s: dict[Candidate, float] = {}
    reference_s = 0.0
    running = list(candidates)
    worker = None
    try:
        for index, length in enumerate(lengths):
            longer = problem.replace(**{problem.swept: length})
            growth = 1.0 if index == 0 else length / lengths[index - 1]
            left_s = deadline - clock.now() - growth * reference_s
            fitting, needed_s = [], 0.0
            for each in sorted(running, key=lambda each: call_s.get(each, 0.0)):
                needed_s += MIN_CALLS * growth * call_s.get(each, 0.0)
                if each.backend.space.forbids(each.config, longer) is None and needed_s <= left_s:
                    fitting.append(each)
            running = fitting
            if not running or left_s <= 0:
                break
            on_length(length)
            started = clock.now()
            context = BenchmarkContext.of(
                longer, registry.op(longer.op).make_inputs(longer, seed), f"drawn, seed {seed}", seed
            )
            reference_s = clock.now() - started
            if worker is None:
                worker, _ = open_worker(context, [each.backend for each in running])
            else:
                worker.load(context)
            share_s = (deadline - clock.now()) / (len(lengths) - index)
            comparer = Comparer(context, worker, store, clock, QuietWait(share_s, clock, worker.disturbance))
            trials = comparer.compare(running, clock.now() + share_s, phase="lengths").trials
            took_s = {each.label: _call_s(each.measurement) for each in trials if each.measurement is not None}
            call_s = {each: took_s[each.label] for each in running if each.label in took_s}
            running = list(call_s)
            taken.extend(trials)
    finally:
        if worker is not None:
            worker.close()
    return tuple(taken)


def _call_s(measurement: Measurement) -> float:
    """Return the duration of a call, by all blocks: an estimate of what the next length takes."""
    return statistics.median(sample for block in measurement.blocks for sample in block.candidate_ns) / 1e9
