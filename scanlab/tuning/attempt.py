"""One configuration tried in a search: proved, then timed beside the anchor for as long as it is promising."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace

from scanlab.bench.pace import Pace
from scanlab.bench.prove import Failure, Proven, Setting, guarded, prove
from scanlab.bench.records import Trial
from scanlab.bench.samples import Block, Measurement
from scanlab.bench.timing import Arm, peak_bytes, take_round
from scanlab.contract.backend import Backend
from scanlab.contract.space import Config

FEWEST_BLOCKS = 3
MOST_BLOCKS = 10
# Half the width of the interval of the log ratio at which more blocks would tell a search nothing.
SURE_ENOUGH = 0.02
# One undisturbed block is enough to give up a configuration that takes this many times as long as the best of
# its backend.
HOPELESS_FACTOR = 2.0


def attempt(
    backend: Backend,
    config: Config,
    setting: Setting,
    anchor: Proven,
    anchor_arm: Arm,
    best: Measurement | None,
    rng: random.Random,
    deadline: float = math.inf,
    pace: Pace | None = None,
) -> tuple[Trial, Proven | None]:
    """The record of `config`, and its scan where it went well.

    anchor_arm  what is timed beside: the anchor's, or that of the pacer where there is a `pace`
    best        the best measurement of this backend so far: what is clearly slower is pruned
    deadline    a value of time.monotonic(); at least one block is taken
    """
    started_at = time.time()
    proven = prove(backend, config, setting)
    if isinstance(proven, Failure):
        return setting.trial("search", backend, config, started_at, proven), None
    pruned: str | None = None

    def measured() -> Measurement:
        nonlocal pruned
        arm = proven.arm(setting)
        blocks: list[Block] = []
        while True:
            begun = time.monotonic()
            blocks += take_round([arm], anchor_arm, rng, len(blocks))
            measurement = proven.measurement(arm, anchor, anchor_arm, blocks, peak=None)
            measurement = measurement if pace is None else pace.applied(measurement)
            pruned = hopeless(measurement, best) if best is not None else None
            late = 2 * time.monotonic() - begun > deadline
            if pruned or late or enough(measurement):
                return replace(measurement, peak_bytes=peak_bytes(arm.call, arm.device, arm.threads))

    outcome = guarded(measured)
    trial = setting.trial("search", backend, proven.config, started_at, outcome, proven.verdict, pruned)
    return trial, proven if trial.state == "ok" else None


def enough(measurement: Measurement) -> bool:
    """Whether a search needs no further blocks; a disturbed block is repeated, up to the most there may be."""
    undisturbed = len(measurement.blocks) - measurement.disturbed_blocks
    if len(measurement.blocks) >= MOST_BLOCKS:
        return True
    interval = measurement.paced_interval
    return undisturbed >= FEWEST_BLOCKS and interval.high - interval.low <= 2 * SURE_ENOUGH


def hopeless(measurement: Measurement, best: Measurement) -> str | None:
    """Why more blocks would not make this the best of its backend, or None."""
    behind = measurement.log_ratio - best.log_ratio
    looked = len(measurement.blocks) >= FEWEST_BLOCKS or not measurement.disturbed_blocks
    if looked and behind > math.log(HOPELESS_FACTOR):
        return f"takes {math.exp(behind):.2g} times as long as the best of its backend, by the first look"
    apart = measurement.paced_interval.low > best.paced_interval.high
    if len(measurement.blocks) >= FEWEST_BLOCKS and apart:
        return f"takes {math.exp(behind):.2f} times as long as the best of its backend, and their intervals are apart"
    return None
