"""What was chosen on this machine: a profile maps problems to backends, with the evidence, in one JSON file."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import platformdirs

from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanProblem
from scanlab.contract.space import Config
from scanlab.errors import ProfileError
from scanlab.tuning.warm_start import kind_of, size_distance

SCHEMA_VERSION = 1
FIELDS = {"schema_version", "machine", "machine_id", "entries"}


@dataclass(frozen=True)
class ProfileEntry:
    """One choice: the winner for one problem, of which source, and what was measured.

    adopted_from  the machine that chose, where that is of another kind than this one
    """

    problem: ScanProblem
    backend: str
    source_hash: str
    config: Config
    evidence: Mapping[str, Any] = field(default_factory=dict)
    adopted_from: str | None = None

    def to_json(self) -> dict[str, Any]:
        """This entry as JSON values."""
        return {
            "problem": self.problem.key,
            "backend": self.backend,
            "source_hash": self.source_hash,
            "config": dict(self.config),
            "evidence": dict(self.evidence),
            "adopted_from": self.adopted_from,
        }


@dataclass(frozen=True)
class Profile:
    """The choices made on one kind of machine, at most one for each problem."""

    machine_id: str
    machine: str
    entries: tuple[ProfileEntry, ...] = ()

    @classmethod
    def empty(cls) -> Profile:
        """A profile of this machine without any choice."""
        machine = this_machine()
        return cls(machine.silicon_id, machine.describe())

    def with_entry(self, entry: ProfileEntry) -> Profile:
        """This profile with `entry` in the place of any earlier one for the same problem."""
        others = tuple(each for each in self.entries if each.problem != entry.problem)
        return replace(self, entries=(*others, entry))

    def exact(self, problem: ScanProblem) -> ProfileEntry | None:
        """The entry for `problem` itself, or None."""
        return next((entry for entry in self.entries if entry.problem == problem), None)

    def nearest(self, problem: ScanProblem) -> tuple[ProfileEntry, ...]:
        """The entries of the same kind of problem, the one for itself first: all but the sizes agree."""
        family = [entry for entry in self.entries if kind_of(entry.problem) == kind_of(problem)]
        return tuple(sorted(family, key=lambda entry: size_distance(entry.problem, problem)))

    def save(self, path: Path) -> None:
        """Write this profile to `path` atomically: a reader sees the old file or the new one, whole."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "machine": self.machine,
            "machine_id": self.machine_id,
            "entries": [entry.to_json() for entry in self.entries],
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
            try:
                # Not tempfile, which lets nobody else read what it makes: a profile may serve a whole machine.
                with temporary.open("x") as file:
                    json.dump(content, file, indent=2)
                    file.write("\n")
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise ProfileError(
                f"cannot write the profile {path}: {error}. Name another place in {ENV_PATH}."
            ) from error

    @classmethod
    def load(cls, path: Path) -> Profile:
        """The profile in `path`; raises ProfileError where it is damaged, newer, or from another machine."""
        cure = "Run `scanlab tune` to write a new one, or remove the file."
        try:
            content = json.loads(path.read_text())
        except OSError as error:
            raise ProfileError(
                f"cannot read the profile {path}: {error.strerror}."
                f" Run `scanlab tune` to write one there, or name another place in {ENV_PATH}."
            ) from error
        except ValueError as error:
            raise ProfileError(f"the profile {path} is damaged: not JSON ({error}). {cure}") from error
        if not isinstance(content, dict) or not content.keys() >= FIELDS:
            raise ProfileError(f"the profile {path} is damaged: it must hold {', '.join(sorted(FIELDS))}. {cure}")
        if content["schema_version"] != SCHEMA_VERSION:
            raise ProfileError(
                f"the profile {path} has schema {content['schema_version']}: must be {SCHEMA_VERSION}. {cure}"
            )
        here = this_machine()
        if content["machine_id"] != here.silicon_id:
            raise ProfileError(
                f"the profile {path} is from another machine ({content['machine']}); this is {here.describe()}. {cure}"
            )
        try:
            entries = tuple(
                ProfileEntry(
                    problem=ScanProblem.parse(entry["problem"]),
                    backend=str(entry["backend"]),
                    source_hash=str(entry["source_hash"]),
                    config=dict(entry["config"]),
                    evidence=dict(entry["evidence"]),
                    adopted_from=entry.get("adopted_from", entry.get("kin")),
                )
                for entry in content["entries"]
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ProfileError(f"the profile {path} is damaged: {type(error).__name__}: {error}. {cure}") from error
        return cls(content["machine_id"], content["machine"], entries)


ENV_PATH = "SCANLAB_PROFILE"


def profile_path() -> Path:
    """Where this machine's profile is: $SCANLAB_PROFILE, or a file named by the silicon in the user's data folder.

    A file for each kind of machine, so that machines which share a home folder do not share their choices.
    """
    named = os.environ.get(ENV_PATH)
    if named:
        return Path(named)
    return (
        Path(platformdirs.user_data_dir("scanlab", appauthor=False)) / "profiles" / f"{this_machine().silicon_id}.json"
    )


def load_profile() -> Profile | None:
    """This machine's profile, or None where none was written yet."""
    path = profile_path()
    if not path.exists() and ENV_PATH not in os.environ:
        return None
    return Profile.load(path)
