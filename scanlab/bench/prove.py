"""From a configuration to a scan that may be timed: build it, call it once, hold it against the oracle."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from scanlab.bench.records import Phase, State, Trial, label_of
from scanlab.bench.roofline import Ceilings, ceilings_here
from scanlab.bench.samples import Block, Measurement
from scanlab.bench.timing import Arm, arm, call_of, rotation, shuffled
from scanlab.contract.backend import Backend
from scanlab.contract.cpu import thread_count
from scanlab.contract.machine import Machine, this_machine
from scanlab.contract.problem import ScanInputs, ScanProblem, make_inputs
from scanlab.contract.space import Config, Value
from scanlab.contract.verify import ReferenceOutputs, Verdict, reference_outputs, verify
from scanlab.errors import RejectedError, UnavailableError

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """What the trials of one run share: the problem, its inputs and what the oracle says of them.

    expectations  for the inputs themselves, and for a draw of hard ones (`make_inputs` with seed + 1)
    turns         the inputs and copies of them, which timed calls take in turn
    ceilings      what the CPU could do at best; None for a problem on another device
    """

    problem: ScanProblem
    inputs_label: str
    seed: int
    machine: Machine
    expectations: tuple[ReferenceOutputs, ...]
    turns: tuple[tuple[ScanInputs, ...], ...]
    ceilings: Ceilings | None

    @classmethod
    def of(cls, problem: ScanProblem, inputs: tuple[ScanInputs, ...], inputs_label: str, seed: int) -> Setting:
        """The setting for `inputs`; asks the oracle, which takes about as long as the reference loop in float64."""
        posed = (inputs, make_inputs(problem, seed=seed + 1))
        expectations = tuple(reference_outputs(problem, each) for each in posed)
        ceilings = ceilings_here() if problem.device == "cpu" else None
        return cls(problem, inputs_label, seed, this_machine(), expectations, rotation(inputs), ceilings)

    def attainable_ms(self, config: Config) -> float | None:
        """What a kernel that wastes nothing would take on the threads of `config`; None where there are no ceilings."""
        if self.ceilings is None:
            return None
        return 1e3 * self.ceilings.attainable_s(self.problem, thread_count(config))

    def with_fresh_inputs(self) -> Setting:
        """The same problem with inputs of the same kind that no trial of this setting has seen; the hard ones stay."""
        fresh = tuple(shuffled(each, self.problem.groups, self.seed + 2) for each in self.turns[0])
        expectations = (reference_outputs(self.problem, fresh), *self.expectations[1:])
        return replace(self, seed=self.seed + 2, expectations=expectations, turns=rotation(fresh))

    def trial(
        self,
        phase: Phase,
        backend: Backend,
        config: Config,
        started_at: float,
        outcome: Failure | Measurement,
        verdict: Verdict | None = None,
        pruned: str | None = None,
    ) -> Trial:
        """The record of a configuration tried since `started_at`; `verdict` goes with a measurement.

        A time that the machine cannot have computed the scan in makes it wrong, whatever its verdict.
        """
        reason = pruned
        if isinstance(outcome, Measurement) and self.ceilings is not None:
            threads = thread_count(config)
            refusal = self.ceilings.refuses(self.problem, threads, outcome.median_ms / 1e3)
            outcome = outcome if refusal is None else Failure("wrong", refusal, verdict)
        if isinstance(outcome, Failure):
            reason, verdict = outcome.reason, outcome.verdict
        return Trial(
            phase=phase,
            problem=self.problem,
            inputs_label=self.inputs_label,
            backend=backend.name,
            source_hash=backend.source_hash,
            config=dict(config),
            state=outcome.state if isinstance(outcome, Failure) else "pruned" if pruned else "ok",
            machine=self.machine,
            seed=self.seed,
            started_at=started_at,
            duration_s=time.time() - started_at,
            verdict=verdict,
            measurement=None if isinstance(outcome, Failure) else outcome,
            reason=reason,
        )


@dataclass(frozen=True)
class Failure:
    """Why a configuration cannot be timed."""

    state: State
    reason: str
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Proven:
    """A configuration whose scan agreed with the oracle with every reference of its setting; `call` is what to time."""

    backend: Backend
    config: dict[str, Value]
    call: Callable[[], object]
    verdict: Verdict
    build_ms: float
    first_call_ms: float

    def arm(self, setting: Setting) -> Arm:
        """This scan, ready to be timed on the inputs of `setting`."""
        return arm(self.call, setting.problem, self.config)

    @property
    def label(self) -> str:
        """Backend and configuration in one line."""
        return label_of(self.backend.name, self.config)

    def measurement(
        self, arm: Arm, anchor: Proven, anchor_arm: Arm, blocks: Sequence[Block], peak: int | None
    ) -> Measurement:
        """The measurement that `blocks` of this scan beside `anchor`, and the bytes of its peak, make."""
        return Measurement(
            anchor=anchor.backend.name,
            anchor_config=anchor.config,
            anchor_source_hash=anchor.backend.source_hash,
            calls=arm.calls,
            anchor_calls=anchor_arm.calls,
            build_ms=self.build_ms,
            first_call_ms=self.first_call_ms,
            peak_bytes=peak,
            blocks=tuple(blocks),
        )


def prove(backend: Backend, config: Config, setting: Setting) -> Proven | Failure:
    """The scan of `backend` under `config` once it has agreed with the oracle, or why there is none.

    Raises ConfigError where the configuration is not legal.
    """
    full = backend.space.complete(config, setting.problem, backend.name)

    def build_and_verify() -> Proven | Failure:
        start = time.perf_counter()
        scan = backend.build(setting.problem, full)
        call = call_of(scan, setting.problem, setting.turns)
        built = time.perf_counter()
        call()
        called = time.perf_counter()
        verdict = _all_of([verify(scan, expected) for expected in setting.expectations])
        if not verdict.passed:
            return Failure("wrong", verdict.reason or "it disagrees with the oracle", verdict)
        return Proven(backend, full, call, verdict, 1e3 * (built - start), 1e3 * (called - built))

    return guarded(build_and_verify)


def guarded(action: Callable[[], T]) -> T | Failure:
    """What `action` returns; a rejection and a crash become a Failure."""
    try:
        return action()
    except (RejectedError, UnavailableError) as error:
        return Failure("rejected", str(error))
    except Exception as error:  # noqa: BLE001  # a backend may raise anything, and one crash must not end a run
        return Failure("crashed", f"{type(error).__name__}: {error}")


def _all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict for several: passed where all did, with the largest error of each tensor."""
    errors: dict[str, float] = {}
    tolerances: dict[str, float] = {}
    for verdict in verdicts:
        errors |= {name: max(error, errors.get(name, 0.0)) for name, error in verdict.errors.items()}
        tolerances |= verdict.tolerances
    reasons = dict.fromkeys(verdict.reason for verdict in verdicts if verdict.reason)
    return Verdict(all(verdict.passed for verdict in verdicts), errors, tolerances, "; ".join(reasons) or None)
