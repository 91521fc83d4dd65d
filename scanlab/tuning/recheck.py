"""Whether a choice still holds on the machine at hand: its source, its answers and its speed, once more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scanlab.bench.compare import race
from scanlab.bench.prove import Setting
from scanlab.bench.ranking import Race
from scanlab.bench.records import Trial
from scanlab.bench.store import TrialStore
from scanlab.bench.worker import Entrant
from scanlab.contract import registry
from scanlab.contract.machine import this_machine
from scanlab.contract.problem import make_inputs
from scanlab.errors import RejectedError, UnknownBackendError

# Machines have worse days: a choice is demoted for its speed only when it is certainly slower than this share
# of the slowest that its evidence says.
TOLERATED_SHARE = 0.9


@dataclass(frozen=True)
class Checked:
    """Whether a choice holds, the reason in one sentence, and the race that was run to find out, if any.

    `holds` is None where the time did not suffice to tell.
    """

    holds: bool | None
    reason: str
    race: Race | None = None


def check(
    chosen: Trial,
    results: TrialStore,
    deadline: float,
    rivals: Sequence[Entrant] = (),
    processes: int = 2,
    on_round: Callable[[int], None] = lambda number: None,
) -> Checked:
    """Prove and time `chosen` again beside the anchor of its evidence, and beside `rivals`, until `deadline`.

    chosen    the trial that a choice rests on; the inputs are fresh draws, those of the trial are not needed
    deadline  a value of time.monotonic()
    rivals    whoever might be faster by now
    It does not hold where the machine, the libraries or the source are others than those of the evidence, where
    it is wrong or cannot run, where a rival is shown to be faster, and where its speed-up is certainly lower
    than its evidence says.
    """
    if chosen.measurement is None:
        return Checked(False, f"{chosen.label} has no measurement to hold it against: {chosen.reason}")
    try:
        backend, anchor = registry.get(chosen.backend), registry.get(chosen.measurement.anchor)
    except UnknownBackendError as error:
        return Checked(False, str(error))
    stale = _stale(chosen, backend.source_hash)
    if stale is not None:
        return Checked(False, stale)
    setting = Setting.of(
        chosen.problem, make_inputs(chosen.problem, chosen.seed + 3), chosen.inputs_label, chosen.seed + 3
    )
    entrants = [Entrant(backend, chosen.config), *rivals]
    yardstick = Entrant(anchor, chosen.measurement.anchor_config)
    try:
        held = race(
            entrants, yardstick, setting, results, deadline, phase="holdout", processes=processes, on_round=on_round
        )
    except RejectedError as error:
        return Checked(False, str(error))
    return _judged(chosen, held)


def _stale(chosen: Trial, source_hash: str) -> str | None:
    """Why the evidence says nothing about this machine and this source, or None."""
    here = this_machine()
    if chosen.machine.silicon_id != here.silicon_id:
        return f"{chosen.label} was measured on another machine: {chosen.machine.describe()}"
    if chosen.source_hash != source_hash:
        return f"the source of {chosen.backend} has changed since {chosen.label} was measured"
    if chosen.machine.software_id != here.software_id:
        return f"{chosen.label} was measured with other software: {chosen.machine.describe()}"
    return None


def _judged(chosen: Trial, held: Race) -> Checked:
    own = next(
        (one for one in held.standings if one.trial.config == chosen.config and one.trial.backend == chosen.backend),
        None,
    )
    if not held.trials:
        return Checked(None, f"{chosen.label} could not be checked in the time: {'; '.join(held.notices)}", held)
    if own is None:
        said = [trial.reason for trial in held.dropped if trial.backend == chosen.backend]
        return Checked(False, f"{chosen.label} cannot be timed any more: {'; '.join(map(str, said))}", held)
    assert own.trial.measurement is not None
    assert chosen.measurement is not None
    now, then = own.trial.measurement.speedup_interval, chosen.measurement.speedup_interval
    spoken = f"{own.trial.speedup_spelled}, and its evidence says {chosen.measurement.speedup:.3g} ({then.spelled()})"
    if not own.tied and held.winner is not None and held.winner is not own:
        behind = math.exp(own.behind)
        return Checked(False, f"{chosen.label} takes {behind:.3g} times as long as {held.winner.trial.label} now", held)
    if not now.known:
        return Checked(
            None, f"{chosen.label} was right, and too few rounds fitted to tell its speed: give it more time", held
        )
    if now.high < TOLERATED_SHARE * then.low:
        return Checked(False, f"{chosen.label} is slower than its evidence: it is {spoken}", held)
    return Checked(True, f"{chosen.label} holds: it is {spoken}", held)
