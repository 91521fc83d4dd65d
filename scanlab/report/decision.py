"""Decision of a tuning and the evidence for it, kept as JSON beside the records of its results folder."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scanlab.bench.records import check_field_types, label_of
from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.files import read_text, write_atomically
from scanlab.contract.machine import Machine
from scanlab.contract.space import Value
from scanlab.errors import UNREADABLE, ResultsError
from scanlab.report.formatting import percent
from scanlab.report.select import Contest, slugs

if TYPE_CHECKING:
    from scanlab.tuning.result import TuningResult

DECISIONS = "decisions"


@dataclass(frozen=True, kw_only=True)
class TuningDecision:
    """Configuration that a tuning chose, and the evidence for it.

    Attributes:
        why: The sentence that `scanlab tune` printed.
        evidence: Name of the rank of the evidence.
        backend: Backend of the chosen configuration; None if nothing was chosen.
        gain: Gain over the untuned choice, in words; None if that was chosen, or if nothing was compared.
        ties: Labels of the candidates that were not distinguishable from the chosen configuration.
        noise_floor: Relative difference between two runs of one configuration, at 95 %; None if unknown.
        rounds: Rounds of the comparison that decided; 0 without one.
        disturbed_rounds: Number of rounds that other processes disturbed.
        attainable_share: Time of a kernel that wastes nothing over the time of the chosen; None if unknown.
        deployed: Whether the configuration serves from then on.
        command: The command line, without the path of the program and without secrets.
        version: Version of scanlab.
        budget: Budget, in words.
        objective: The time that candidates were ranked by.
        notes: What was skipped, left out or repaired, and why.
    """

    problem: Problem
    inputs_label: str
    machine: Machine
    why: str
    evidence: str
    backend: str | None
    config: Mapping[str, Value] = field(default_factory=dict)
    gain: str | None
    ties: tuple[str, ...]
    noise_floor: float | None
    rounds: int
    disturbed_rounds: int
    deployed: bool
    command: str
    version: str
    budget: str
    objective: str = "median"
    attainable_share: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        found: TuningResult,
        machine: Machine,
        *,
        deployed: bool,
        command: str,
        budget: str,
    ) -> TuningDecision:
        """Return the decision of a tuning."""
        winner, comparison = found.winner, found.comparison
        floor = math.inf if comparison is None else comparison.noise_floor
        return cls(
            problem=found.problem,
            inputs_label=found.inputs_label,
            machine=machine,
            why=found.why,
            evidence=found.evidence.label,
            backend=None if winner is None else winner.backend,
            config={} if winner is None else dict(winner.config),
            gain=None if found.gain is None else f"{found.gain.text} over {found.gain.over}",
            ties=tuple(sorted(found.tied)),
            noise_floor=math.expm1(floor) if math.isfinite(floor) else None,
            rounds=0 if comparison is None else comparison.rounds,
            disturbed_rounds=0 if comparison is None else comparison.rounds - comparison.clean_rounds,
            deployed=deployed,
            command=command,
            version=machine.software.scanlab,
            budget=budget,
            objective=found.objective,
            attainable_share=comparison.winner.attainable_share if comparison and comparison.winner else None,
            notes=found.notices,
        )

    @property
    def contest(self) -> Contest:
        """Problem and inputs that it is about."""
        return Contest(self.problem, self.inputs_label)

    @property
    def label(self) -> str | None:
        """Backend and configuration in one line; None if nothing was chosen."""
        return None if self.backend is None else label_of(self.backend, self.config)

    @property
    def doubts(self) -> str:
        """Ties, noise floor and disturbed rounds in one line."""
        tied = self.ties[0] if len(self.ties) == 1 else f"{len(self.ties)} others"
        parts = [f"tied with {tied}"] if self.ties else []
        if self.noise_floor is not None:
            parts.append(f"two runs of one configuration differ by up to {percent(self.noise_floor)}")
        if self.rounds:
            parts.append(f"{self.disturbed_rounds} of {self.rounds} rounds disturbed")
        return "; ".join(parts)

    def rows(self) -> dict[str, str]:
        """Return the evidence by its name, in words."""
        disturbed = f"{self.disturbed_rounds} of {self.rounds} rounds" if self.rounds else "?"
        return {
            "chosen": self.label or "nothing",
            "deployed": "yes" if self.deployed else "no",
            "evidence": self.evidence,
            "objective": self.objective,
            "gain over the untuned choice": self.gain or "none shown",
            "tied with": ", ".join(self.ties) or "nothing",
            "share of the roofline": "?" if self.attainable_share is None else percent(self.attainable_share),
            "noise floor": "?" if self.noise_floor is None else percent(self.noise_floor),
            "disturbed": disturbed,
            "command": self.command,
            "budget": self.budget,
            "scanlab": self.version,
            "machine": self.machine.describe(),
            **({"notes": "; ".join(self.notes)} if self.notes else {}),
        }

    def to_json(self) -> dict[str, Any]:
        """Return this decision as JSON values."""
        return asdict(self) | {"op": self.problem.op, "problem": self.problem.key, "machine": self.machine.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TuningDecision:
        """Return the decision that `to_json` wrote; raises TypeError, ValueError or LookupError for anything else."""
        fields = dict(values)
        problem = registry.parse_problem(fields["problem"], fields.pop("op", registry.DEFAULT_OP))
        machine = Machine.from_json(fields["machine"])
        fields |= {name: tuple(fields[name]) for name in ("ties", "notes") if name in fields}
        found = cls(**{**fields, "problem": problem, "machine": machine})
        check_field_types(found)
        return found


class LoadedDecisions(NamedTuple):
    """Decisions of a results folder, and a notice for every file that could not be read."""

    decisions: tuple[TuningDecision, ...]
    notices: tuple[str, ...]


def save_decisions(decisions: Iterable[TuningDecision], results: Path) -> None:
    """Write each decision to `results`, in a file for its problem, inputs and machine.

    A decision that was not deployed leaves a deployed one in its place, which goes on serving.

    Raises:
        ResultsError: If it cannot be written.
    """
    folder = results / DECISIONS
    deployed = {_file_name(each) for each in load_decisions(results).decisions if each.deployed}
    try:
        for decision in decisions:
            name = _file_name(decision)
            if decision.deployed or name not in deployed:
                write_atomically(folder / name, json.dumps(decision.to_json(), indent=1) + "\n")
    except OSError as error:
        raise ResultsError(f"{folder}: cannot write the decision: {error.strerror}. Name another folder.") from error


def load_decisions(results: Path) -> LoadedDecisions:
    """Return every readable decision in `results`."""
    decisions, notices = [], []
    for path in sorted((results / DECISIONS).glob("*.json")):
        try:
            decisions.append(TuningDecision.from_json(json.loads(read_text(path))))
        except (OSError, *UNREADABLE) as error:
            notices.append(f"{path}: skipped, because it cannot be read as a decision: {type(error).__name__}: {error}")
    return LoadedDecisions(tuple(decisions), tuple(notices))


def decisions_on(machine: Machine, decisions: Sequence[TuningDecision]) -> dict[Contest, TuningDecision]:
    """Return the decisions made on `machine` with its present software, by subject."""
    ids = (machine.silicon_id, machine.software_id)
    return {each.contest: each for each in decisions if (each.machine.silicon_id, each.machine.software_id) == ids}


def _file_name(decision: TuningDecision) -> str:
    (slug,) = slugs([decision.contest]).values()
    inputs = re.sub(r"[^\w.-]", "_", decision.inputs_label)
    return f"{slug}-{inputs}-{decision.machine.silicon_id}.json"
