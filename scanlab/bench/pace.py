"""A pacer: something fast that is timed in the stead of a slow anchor, which is timed beside it a few times.

Where one call of the anchor takes a second, a search that timed it in every block would do little else. A ratio to
the pacer is paired within its block as one to the anchor is; what turns it into a ratio to the anchor is measured
once, and is the same for all that one search or race compares.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from scanlab.bench.deadline import OutOfTimeError, time_limit
from scanlab.bench.prove import Failure, Proven, Setting, guarded, prove
from scanlab.bench.records import label_of
from scanlab.bench.samples import Block, Measurement
from scanlab.bench.timing import Arm, take_round
from scanlab.bench.worker import Entrant
from scanlab.contract.backend import Backend
from scanlab.errors import RejectedError

# What is not this many times as fast as the anchor does not save enough to be timed in its stead.
WORTHWHILE = 4.0
# Rounds of the anchor beside the pacer: a single one tells a search enough, and an interval needs a few.
FEWEST_FOR_INTERVAL = 3
MOST_ROUNDS = 9


@dataclass(frozen=True)
class Pace:
    """A pacer and the anchor's blocks beside it."""

    pacer: Proven
    anchor_blocks: tuple[Block, ...]

    @property
    def anchor_s(self) -> float:
        """What one call of the anchor takes."""
        return statistics.median(sample for block in self.anchor_blocks for sample in block.candidate_ns) / 1e9

    def applied(self, measurement: Measurement) -> Measurement:
        """`measurement`, whose blocks were taken beside the pacer, with what turns it into one of the anchor."""
        return replace(measurement, pacer=self.pacer.label, anchor_blocks=self.anchor_blocks)


def anchor_and_pace(
    wanted: Entrant, backends: Sequence[Backend], setting: Setting, deadline: float
) -> tuple[Proven, Pace | None, tuple[str, ...]]:
    """What is timed against, what is timed in its stead where that is much faster, and what is to be said of it.

    The pacer has the defaults of the highest rank that runs. Which backend that is does not depend on times, so that
    two searches side by side, and one that goes on where another ended, have the same. Where an anchor has not been
    proved and timed by `deadline`, the pacer is the anchor. Raises RejectedError where the anchor cannot run.
    """
    pacer = _highest_that_runs(backends, setting, deadline)
    if pacer is None:
        return _proven(wanted, setting), None, ()
    try:
        with time_limit(deadline):
            anchor = _proven(wanted, setting)
            halfway = time.monotonic() + (deadline - time.monotonic()) / 2
            found = guarded(partial(_beside, pacer, anchor, setting, 1, halfway))
            return anchor, None if isinstance(found, Failure) else found, ()
    except OutOfTimeError:
        slow, fast = label_of(wanted.backend.name, wanted.config), pacer.label
        return pacer, None, (f"{slow} is too slow an anchor for this budget: everything is timed against {fast}",)


def _highest_that_runs(backends: Sequence[Backend], setting: Setting, deadline: float) -> Proven | None:
    able = [each for each in backends if each.unavailable() is None and each.rejects(setting.problem) is None]
    try:
        with time_limit(deadline):
            for backend in sorted(able, key=lambda each: each.rank, reverse=True):
                proven = prove(backend, backend.space.defaults, setting)
                if isinstance(proven, Proven):
                    return proven
    except OutOfTimeError:
        pass
    return None


def _proven(anchor: Entrant, setting: Setting) -> Proven:
    # By one draw: what is slow enough to need a pacer should not be called once more for the other.
    proven = prove(anchor.backend, anchor.config, replace(setting, expectations=setting.expectations[:1]))
    if isinstance(proven, Failure):
        raise RejectedError(f"the anchor {anchor.backend.name} cannot be timed: {proven.reason}. Name another.")
    return proven


def measured_again(pace: Pace, anchor: Proven, setting: Setting, deadline: float) -> Pace:
    """The same pacer with new blocks of the anchor, or `pace` itself where either of them fails."""
    found = guarded(partial(_beside, pace.pacer, anchor, setting, FEWEST_FOR_INTERVAL, deadline))
    return pace if isinstance(found, Failure) or found is None else found


def call_s(arm: Arm) -> float:
    """What one call takes, by the pilot."""
    return arm.cost_s / (arm.samples * (arm.calls + (arm.calls > 1)))


def _beside(pacer: Proven, anchor: Proven, setting: Setting, fewest: int, deadline: float) -> Pace | None:
    """Rounds of the anchor beside the pacer until `deadline`, but `fewest`; None where that saves too little."""
    anchor_arm, pacer_arm = anchor.arm(setting), pacer.arm(setting)
    if call_s(anchor_arm) < WORTHWHILE * call_s(pacer_arm):
        return None
    rng = random.Random(setting.seed)
    blocks: list[Block] = []
    while len(blocks) < fewest or (len(blocks) < MOST_ROUNDS and time.monotonic() < deadline):
        blocks += take_round([anchor_arm], pacer_arm, rng, len(blocks))
    return Pace(pacer, tuple(blocks))
