"""Check of a deployed choice on the machine at hand: its source, its answers and its speed, once more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from scanlab.bench.clock import MeasuringClock, QuietWait
from scanlab.bench.compare import Comparer
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.process_worker import open_worker
from scanlab.bench.ranking import MIN_PROCESSES, Comparison
from scanlab.bench.records import Trial
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import Worker
from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.contract.machine import elsewhere
from scanlab.errors import UnknownBackendError

# Beside a neighbour the clean rounds are not free of it either: with more disturbed rounds than this share, or with a
# larger noise floor, no difference of speed demotes a choice.
MAX_DISTURBED_SHARE = 0.1
MAX_NOISE_FLOOR = math.log(1.05)
# Machines have worse days: a choice is demoted for its speed only when it is certainly slower than this share
# of the slowest that its evidence says.
TOLERATED_SHARE = 0.9


@dataclass(frozen=True)
class CheckedChoice:
    """Verdict on a choice, its reason in one sentence, and the comparison that was run to find out, if any.

    `holds` is None if too little could be measured to tell.
    """

    holds: bool | None
    reason: str
    comparison: Comparison | None = None


def recheck(
    chosen: Trial,
    store: TrialStore,
    seconds: float,
    rivals: Sequence[Candidate] = (),
    clock: MeasuringClock | None = None,
    open_worker: Callable[[BenchmarkContext, Iterable[Backend]], tuple[Worker, tuple[str, ...]]] = open_worker,
) -> CheckedChoice:
    """Verify `chosen` and time it again beside `rivals`, in fresh processes, for `seconds` of measuring.

    It does not hold where the machine, the libraries or the source differ from those of the evidence, where it is wrong
    or cannot run, where a rival is shown to be faster, and where its speed-up over the reference is certainly lower
    than its evidence says.

    Args:
        chosen: Trial that the choice rests on. It is timed on freshly drawn inputs.
        store: Takes the records.
        seconds: Time of measuring.
        rivals: Candidates that might be faster by now.
        clock: Clock of the measuring; a new one where None.
        open_worker: Opens the worker.
    """
    if chosen.measurement is None:
        return CheckedChoice(False, f"{chosen.label} has no measurement to hold it against: {chosen.reason}")
    try:
        backend = registry.get(chosen.backend)
    except UnknownBackendError as error:
        return CheckedChoice(False, str(error))
    stale = _stale(chosen, backend.source_hash)
    if stale is not None:
        return CheckedChoice(False, stale)
    seed = chosen.seed + 3
    clock = clock or MeasuringClock()
    with clock.paused():
        inputs = registry.op(chosen.problem.op).make_inputs(chosen.problem, seed)
        context = BenchmarkContext.of(chosen.problem, inputs, chosen.inputs_label, seed)
    candidates = [Candidate(backend, dict(chosen.config)), *rivals]
    worker, _ = open_worker(context, [each.backend for each in candidates])
    try:
        wait = QuietWait(seconds, clock, worker.disturbance)
        comparer = Comparer(context, worker, store, clock, wait)
        compared = comparer.compare(candidates, clock.now() + seconds, phase="holdout", processes=MIN_PROCESSES)
    finally:
        worker.close()
    return _judged(chosen, compared)


def _stale(chosen: Trial, source_hash: str) -> str | None:
    """Return why the evidence says nothing about this machine and this source, or None."""
    if chosen.source_hash != source_hash:
        return f"the source of {chosen.backend} has changed since {chosen.label} was measured"
    difference = elsewhere(chosen.machine)
    return None if difference is None else f"{chosen.label} {difference}"


def _judged(chosen: Trial, compared: Comparison) -> CheckedChoice:
    own = next((each for each in compared.ranking if each.trial.label == chosen.label), None)
    if own is None:
        trial = next((each for each in compared.dropped if each.label == chosen.label), None)
        if trial is None or trial.state == "disturbed" or (not compared.rounds and trial.state == "rejected"):
            reason = "; ".join(compared.notices) or (trial.reason if trial is not None else None)
            return CheckedChoice(None, f"{chosen.label} could not be checked in the time: {reason}", compared)
        return CheckedChoice(False, f"{chosen.label} cannot be timed any more: {trial.reason}", compared)
    assert own.trial.measurement is not None
    assert chosen.measurement is not None
    now, then = own.trial.measurement.speedup_interval, chosen.measurement.speedup_interval
    evidence = f"its evidence says {chosen.measurement.speedup:.3g} ({then.spelled()})"
    spoken = f"{own.trial.speedup_text}, and {evidence}"
    slower = None
    if own.place.distinguishable and compared.winner is not None:
        behind = math.exp(own.place.behind)
        slower = f"{chosen.label} takes {behind:.3g} times as long as {compared.winner.trial.label} now"
    elif not now.known or own.trial.reference_label != chosen.reference_label:
        return CheckedChoice(
            None, f"{chosen.label} was right, and too few clean rounds tell its speed: give it more time", compared
        )
    elif now.high < TOLERATED_SHARE * then.low:
        slower = f"{chosen.label} is slower than its evidence: it is {spoken}"
    if slower is None:
        return CheckedChoice(True, f"{chosen.label} holds: it is {spoken}", compared)
    doubt = _doubt(compared)
    if doubt is not None:
        return CheckedChoice(None, f"cannot tell: {slower}, but {doubt}; try again when it is quiet", compared)
    return CheckedChoice(False, slower, compared)


def _doubt(compared: Comparison) -> str | None:
    """Return why differences of speed in `compared` may be those of other work on this machine, or None."""
    disturbed = compared.rounds - compared.clean_rounds
    if disturbed > MAX_DISTURBED_SHARE * compared.rounds:
        return f"other work disturbed {disturbed} of {compared.rounds} rounds"
    if compared.noise_floor > MAX_NOISE_FLOOR:
        if not math.isfinite(compared.noise_floor):
            return "there were too few clean rounds to know the noise"
        return f"two runs of one configuration differ by up to {math.expm1(compared.noise_floor):.0%}"
    return None
