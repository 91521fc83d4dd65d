"""Profile of a machine: which backend and configuration serve which problem, on what evidence, in one JSON file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scanlab import settings
from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.evidence import EvidenceRank, rank_of
from scanlab.contract.files import own_folder, read_text, write_atomically
from scanlab.contract.machine import this_machine
from scanlab.contract.space import Config
from scanlab.errors import UNREADABLE, ProfileError

SCHEMA_VERSION = 1
FIELDS = {"schema_version", "machine", "machine_id", "entries"}
# Every profile begins like this, beside white space.
MARK = b'{"schema_version":'
HEAD_BYTES = 64
# An entry serves another problem of its family up to this distance: sizes that differ by a factor of 8 in all.
MAX_DISTANCE = math.log(8.0)
# Number of replaced entries that are kept for each problem.
MAX_REPLACED = 3


@dataclass(frozen=True)
class ProfileEntry:
    """A chosen configuration with its evidence.

    Attributes:
        problem: The problem that it was chosen for.
        backend: Name of the backend.
        source_hash: Hash of the backend's sources when it was measured.
        config: Configuration of the backend.
        evidence: Measurement, as JSON values: the trial under "trial", and under "why" the sentence that names
            the winner.
        adopted_from: Description of the machine that it was measured on, if that is of another kind than this one.
    """

    problem: Problem
    backend: str
    source_hash: str
    config: Config
    evidence: Mapping[str, Any] = field(default_factory=dict)
    adopted_from: str | None = None

    @property
    def rank(self) -> EvidenceRank:
        """Rank of the evidence, by the trial in it."""
        trial = self.evidence.get("trial")
        measurement = trial.get("measurement") if isinstance(trial, Mapping) else None
        blocks = measurement.get("blocks") if isinstance(measurement, Mapping) else None
        if self.adopted_from is not None or not isinstance(trial, Mapping) or not isinstance(blocks, Sequence):
            return EvidenceRank.NONE
        num_clean = sum(isinstance(block, Mapping) and block.get("disturbed") is None for block in blocks)
        return rank_of(str(trial.get("phase")), trial.get("state") == "disturbed", num_clean)

    def to_json(self) -> dict[str, Any]:
        """Return this entry as JSON values."""
        return {
            "op": self.problem.op,
            "problem": self.problem.key,
            "backend": self.backend,
            "source_hash": self.source_hash,
            "config": dict(self.config),
            "evidence": dict(self.evidence),
            "adopted_from": self.adopted_from,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ProfileEntry:
        """Return the entry that `to_json` wrote; raises TypeError, ValueError or KeyError for anything else."""
        entry = cls(
            problem=registry.parse_problem(values["problem"], values.get("op", registry.DEFAULT_OP)),
            backend=values["backend"],
            source_hash=values["source_hash"],
            config=dict(values["config"]),
            evidence=dict(values["evidence"]),
            adopted_from=values.get("adopted_from", values.get("kin")),  # scanlab 0.1 wrote "kin"
        )
        names = (entry.backend, entry.source_hash, entry.adopted_from or "", *entry.config)
        if not all(isinstance(name, str) for name in names):
            raise TypeError("backend, source_hash and adopted_from must be text")
        if not all(isinstance(value, bool | int | float | str) for value in entry.config.values()):
            raise TypeError(f"the values of a configuration must be numbers, booleans or text, not {entry.config}")
        return entry


@dataclass(frozen=True)
class Profile:
    """Choices made on one kind of machine.

    Attributes:
        machine_id: Hash of the silicon.
        machine: Description of it.
        entries: At most one for each problem.
        replaced: Earlier entries, the newest last; at most MAX_REPLACED for each problem.
    """

    machine_id: str
    machine: str
    entries: tuple[ProfileEntry, ...] = ()
    replaced: tuple[ProfileEntry, ...] = ()

    @classmethod
    def empty(cls) -> Profile:
        """Return a profile of this machine without any choice."""
        machine = this_machine()
        return cls(machine.silicon_id, machine.describe())

    def with_entry(self, entry: ProfileEntry) -> Profile:
        """Return this profile with `entry` for its problem; an earlier entry is kept among the replaced."""
        without = self.without(entry.problem)
        return replace(without, entries=(*without.entries, entry))

    def without(self, problem: Problem) -> Profile:
        """Return this profile without an entry for `problem`; an earlier entry is kept among the replaced."""
        entry = self.exact(problem)
        if entry is None:
            return self
        history = (*self.history(problem), entry)[-MAX_REPLACED:]
        return replace(
            self,
            entries=tuple(each for each in self.entries if each.problem != problem),
            replaced=(*(each for each in self.replaced if each.problem != problem), *history),
        )

    def exact(self, problem: Problem) -> ProfileEntry | None:
        """Return the entry for `problem` itself, if any."""
        return next((entry for entry in self.entries if entry.problem == problem), None)

    def history(self, problem: Problem) -> tuple[ProfileEntry, ...]:
        """Return the replaced entries for `problem`, the newest last."""
        return tuple(each for each in self.replaced if each.problem == problem)

    def nearest(self, problem: Problem) -> tuple[ProfileEntry, ...]:
        """Return the entries for problems of the same family within MAX_DISTANCE, the nearest first."""
        family = [entry for entry in self.entries if entry.problem.family == problem.family]
        near = [entry for entry in family if problem.distance(entry.problem) <= MAX_DISTANCE]
        return tuple(sorted(near, key=lambda entry: problem.distance(entry.problem)))

    def save(self, path: Path) -> None:
        """Write this profile to `path` atomically: a reader sees the old file or the new one, whole.

        To change the profile that others may change too, call `scanlab.runtime.deployment.update_profile`.

        Raises:
            ProfileError: If it cannot be written.
        """
        content = {
            "schema_version": SCHEMA_VERSION,
            "machine": self.machine,
            "machine_id": self.machine_id,
            "entries": [entry.to_json() for entry in self.entries],
            "replaced": [entry.to_json() for entry in self.replaced],
        }
        try:
            write_atomically(path, json.dumps(content, indent=2) + "\n")
        except OSError as error:
            raise unwritable(path, error) from error

    @classmethod
    def load(cls, path: Path, of_this_machine: bool = True) -> Profile:
        """Return the profile in `path`.

        Args:
            path: The file.
            of_this_machine: Refuse the profile of another machine.

        Raises:
            ProfileError: If it is damaged, has another schema, or is of another machine.
        """
        cure = "Run `scanlab tune` to write a new one, or remove the file."
        try:
            content = json.loads(read_text(path))
        except OSError as error:
            raise ProfileError(
                f"cannot read the profile {path}: {error.strerror}."
                f" Run `scanlab tune` to write one there, or name another place in {settings.PROFILE.name}."
            ) from error
        except (ValueError, RecursionError) as error:
            raise ProfileError(f"the profile {path} is damaged: not JSON ({error}). {cure}") from error
        if not isinstance(content, dict) or not content.keys() >= FIELDS:
            raise ProfileError(f"the profile {path} is damaged: it must hold {', '.join(sorted(FIELDS))}. {cure}")
        if content["schema_version"] != SCHEMA_VERSION:
            raise ProfileError(
                f"the profile {path} has schema {content['schema_version']}: must be {SCHEMA_VERSION}. {cure}"
            )
        here = this_machine()
        if of_this_machine and content["machine_id"] != here.silicon_id:
            raise ProfileError(
                f"the profile {path} is from another machine ({content['machine']}); this is {here.describe()}. {cure}"
            )
        try:
            entries, replaced = (
                tuple(map(ProfileEntry.from_json, each)) for each in (content["entries"], content.get("replaced", ()))
            )
        except UNREADABLE as error:
            raise ProfileError(f"the profile {path} is damaged: {type(error).__name__}: {error}. {cure}") from error
        return cls(str(content["machine_id"]), str(content["machine"]), entries, replaced)


def profile_path() -> Path:
    """Return the place of this machine's profile: $SCANLAB_PROFILE, or a file in the user's data folder.

    That file is named by the silicon, so that machines which share a home folder do not share their choices.
    """
    named = settings.PROFILE.get()
    return Path(named) if named else default_path()


def default_path() -> Path:
    """Return the file for this silicon in the user's data folder."""
    return own_folder("data") / "profiles" / f"{this_machine().silicon_id}.json"


def load_profile() -> Profile | None:
    """Return this machine's profile; None if none was written yet.

    There is none either in the folder of another user, as in a container whose HOME is not that of its user.
    """
    path = profile_path()
    try:
        if settings.PROFILE.get() is None and not path.exists():
            return None
    except PermissionError:
        return None
    return Profile.load(path)


def expect_profile(path: Path) -> None:
    """Raise ProfileError if a file that cannot be read as a profile does not begin as one: it is another program's.

    An empty file, and one that a power loss filled with zeros, may have been a profile.
    """
    with path.open("rb") as file:
        head = b"".join(file.read(HEAD_BYTES).strip(b"\0").split())
    # A link may lead to the default place, and that place may be a link itself.
    is_default = os.path.realpath(path) == os.path.realpath(default_path())
    if not is_default and not head.startswith(MARK) and not MARK.startswith(head):
        raise ProfileError(
            f"{path} is not a profile and was left as it is. Name another place in {settings.PROFILE.name}."
        )


def unwritable(path: Path, error: OSError) -> ProfileError:
    """Return the error for a place that cannot be written."""
    return ProfileError(f"cannot write the profile {path}: {error}. Name another place in {settings.PROFILE.name}.")
