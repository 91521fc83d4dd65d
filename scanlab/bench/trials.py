"""Trials from the results of a worker: the baseline of the blocks, and the record of a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scanlab.bench.clock import MeasuringClock, QuietWait
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.records import Phase, State, Trial
from scanlab.bench.samples import Block, Measurement, clean
from scanlab.bench.worker import CandidateFailedError, Evaluation, Worker
from scanlab.contract import registry
from scanlab.contract.base import Problem

# Fewer clean blocks among disturbed ones say nothing.
MIN_CLEAN_BLOCKS = 3
# Blocks of the reference beside the baseline: enough for an interval where they are cheap.
MAX_REFERENCE_BLOCKS = 9


@dataclass(frozen=True)
class Baseline:
    """The candidate that blocks are taken beside, and the reference that speed-ups refer to.

    Attributes:
        calls: Calls in one sample of the candidate.
        reference: Label of the reference; None if speed-ups refer to the baseline itself.
        reference_blocks: Blocks of the reference beside the candidate.
    """

    candidate: Candidate
    calls: int
    reference: str | None = None
    reference_blocks: tuple[Block, ...] = ()

    def measurement(self, evaluation: Evaluation, blocks: Sequence[Block], peak_bytes: int | None) -> Measurement:
        """Return the measurement that `blocks` beside this baseline make."""
        return Measurement(
            baseline=self.candidate.backend.name,
            baseline_config=dict(self.candidate.config),
            baseline_source_hash=self.candidate.backend.source_hash,
            calls=evaluation.calls,
            baseline_calls=self.calls,
            build_ms=evaluation.build_ms,
            first_call_ms=evaluation.first_call_ms,
            peak_bytes=peak_bytes,
            blocks=tuple(blocks),
            reference=self.reference,
            reference_blocks=self.reference_blocks,
        )


def reference_candidate(problem: Problem) -> Candidate:
    """Return the reference of speed-ups on `problem`: the one that its op names, or the simplest of its backends."""
    named = registry.op(problem.op).speedups_over
    backend, config = registry.parse_selection(named) if named else (registry.simplest(problem.op), {})
    return Candidate(backend, backend.space.defaults | config)


def time_reference(
    problem: Problem,
    worker: Worker,
    baseline: Candidate,
    calls: int,
    clock: MeasuringClock,
    deadline: float,
    wait_for_quiet: QuietWait,
) -> tuple[Baseline, str | None]:
    """Time the reference of `problem` a few times beside `baseline`, at least once, until `deadline` of `clock`.

    Returns:
        The baseline, and why its speed-ups refer to itself where the reference could not be timed.
    """
    reference = reference_candidate(problem)
    if reference == baseline:
        return Baseline(baseline, calls), None
    with clock.paused():
        evaluation = worker.prepare(reference)
    if evaluation.state != "ok":
        return Baseline(baseline, calls), f"{reference.label} {evaluation.state}: {evaluation.reason}"
    blocks: list[Block] = []
    try:
        while len(clean(blocks)) < MAX_REFERENCE_BLOCKS and len(blocks) < 2 * MAX_REFERENCE_BLOCKS:
            if blocks and clock.now() + evaluation.block_s > deadline:
                break
            blocks += worker.take_round([reference], baseline, len(blocks))
            if blocks[-1].disturbed:
                wait_for_quiet()
    except CandidateFailedError as failure:
        return Baseline(baseline, calls), str(failure)
    if not clean(blocks):
        return Baseline(baseline, calls), f"every block of {reference.label} was disturbed ({blocks[-1].disturbed})"
    return Baseline(baseline, calls, reference.label, tuple(blocks)), None


def trial_of(
    context: BenchmarkContext,
    phase: Phase,
    candidate: Candidate,
    started_at: float,
    duration_s: float,
    evaluation: Evaluation,
    measurement: Measurement | None = None,
    pruned: str | None = None,
) -> Trial:
    """Return the record of a candidate.

    A time below the arithmetic limit of the machine makes it wrong, even where its outputs were right.

    Args:
        context: Problem, inputs and machine of the trial.
        phase: Phase that the trial records.
        candidate: The one that was tried.
        started_at: Seconds since the epoch.
        duration_s: Time of building, verifying and measuring.
        evaluation: Outcome of preparing it, or the failure that came later.
        measurement: Where it could be timed.
        pruned: Why it was not measured to the end.
    """
    state, reason = evaluation.state, evaluation.reason
    if measurement is not None:
        state, reason = _state_of(measurement, pruned)
        roofline = context.roofline
        refusal = (
            roofline.refuses(context.problem, candidate.threads, measurement.median_ms / 1e3)
            if roofline is not None and measurement.clean
            else None
        )
        if refusal is not None:
            state, reason, measurement = "wrong", refusal, None
    return Trial(
        phase=phase,
        problem=context.problem,
        inputs_label=context.inputs_label,
        backend=candidate.backend.name,
        source_hash=candidate.backend.source_hash,
        config=dict(candidate.config),
        state=state,
        machine=context.machine,
        seed=context.seed,
        started_at=started_at,
        duration_s=duration_s,
        verdict=evaluation.verdict,
        measurement=measurement,
        reason=reason,
    )


def _state_of(measurement: Measurement, pruned: str | None) -> tuple[State, str | None]:
    disturbed = [block.disturbed for block in measurement.blocks if block.disturbed]
    if disturbed and len(measurement.clean) < MIN_CLEAN_BLOCKS:
        return "disturbed", f"{len(disturbed)} of {len(measurement.blocks)} blocks were disturbed ({disturbed[-1]})"
    return ("ok", None) if pruned is None else ("pruned", pruned)
