"""Changes of this machine's profile: deploy, remove, restore. Several processes may make them at the same moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from scanlab import settings
from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.evidence import EvidenceRank
from scanlab.contract.files import expect_regular, expect_writable
from scanlab.contract.machine import Machine, elsewhere
from scanlab.errors import UNREADABLE, ProfileError
from scanlab.runtime.decisions import refuses
from scanlab.runtime.profile import Profile, ProfileEntry, expect_profile, profile_path, unwritable

# A change takes some milliseconds: who holds the lock for longer hangs.
LOCK_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Deployment:
    """Outcome of `deploy`.

    Attributes:
        path: The profile that was written.
        deployed: Entries that serve from now on.
        notices: One sentence for each entry that was refused, and for a profile that had to be moved aside.
    """

    path: Path
    deployed: tuple[ProfileEntry, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class ProfileChange:
    """Difference between two profiles in one problem; None if a profile has no entry for it."""

    problem: Problem
    before: ProfileEntry | None
    after: ProfileEntry | None


def evidence_doubt(entry: ProfileEntry) -> str | None:
    """Return why the evidence of an entry counts for nothing here, or None where it has the rank of its trial."""
    if entry.adopted_from is not None:
        return f"adopted from {entry.adopted_from}"
    refusal = refuses(entry.backend, entry.config, entry.problem)
    if refusal is not None:
        return f"it cannot serve: {refusal}"
    if entry.source_hash != registry.get(entry.backend).source_hash:
        return f"the source of {entry.backend} has changed since it was measured"
    if "trial" not in entry.evidence:
        return "it carries no measurement"
    try:
        difference = elsewhere(Machine.from_json(entry.evidence["trial"]["machine"]))
    except UNREADABLE as error:
        return f"the evidence is damaged: {type(error).__name__}: {error}"
    return None if difference is None else f"it {difference}"


def standing_rank(entry: ProfileEntry) -> EvidenceRank:
    """Return the rank of an entry's evidence on this machine, which has to be reached to replace it."""
    return entry.rank if evidence_doubt(entry) is None else EvidenceRank.NONE


def deploy(entries: Iterable[ProfileEntry], path: Path | None = None) -> Deployment:
    """Put entries into this machine's profile, each unless it would replace stronger evidence by weaker.

    A replaced entry is kept for `restore`. A profile that cannot be read is moved aside.

    Args:
        entries: The new choices.
        path: The profile; by default `profile_path()`.

    Raises:
        ProfileError: If the profile cannot be written.
    """
    deployed: list[ProfileEntry] = []
    notices: list[str] = []

    def change(profile: Profile) -> Profile:
        for entry in entries:
            existing = profile.exact(entry.problem)
            standing = EvidenceRank.NONE if existing is None else standing_rank(existing)
            # Among choices without evidence from this machine, as those adopted from others, the newer one is taken.
            if existing is not None and standing > EvidenceRank.NONE and not entry.rank.may_replace(standing):
                notices.append(
                    f"{entry.problem.key}: {entry.backend} was not deployed, because its evidence ({entry.rank.label})"
                    f" is weaker than that of {existing.backend} ({standing.label}), which goes on serving. Tune"
                    " longer, on an idle machine, or remove that choice with `scanlab profile remove`."
                )
                continue
            profile = profile.with_entry(entry)
            deployed.append(entry)
        return profile

    path = path or profile_path()
    aside = update_profile(change, path, moves_damaged_aside=True)
    return Deployment(path, tuple(deployed), (*aside, *notices))


def remove(problem: Problem, path: Path | None = None) -> ProfileEntry:
    """Remove and return the entry for `problem`; it is kept for `restore`.

    Raises:
        ProfileError: If there is no such entry.
    """
    removed: list[ProfileEntry] = []

    def change(profile: Profile) -> Profile:
        entry = profile.exact(problem)
        if entry is None:
            raise ProfileError(f"nothing is chosen for {problem.key}; see `scanlab profile list`.")
        removed.append(entry)
        return profile.without(problem)

    update_profile(change, path or profile_path())
    return removed[0]


def restore(problem: Problem, path: Path | None = None) -> ProfileEntry:
    """Put the newest replaced entry for `problem` back, and return it; the present one takes its place.

    Raises:
        ProfileError: If no entry for `problem` was replaced.
    """
    restored: list[ProfileEntry] = []

    def change(profile: Profile) -> Profile:
        history = profile.history(problem)
        if not history:
            raise ProfileError(f"no choice for {problem.key} was replaced; see `scanlab profile list`.")
        restored.append(history[-1])
        others = tuple(entry for entry in profile.replaced if entry is not history[-1])
        kept = Profile(profile.machine_id, profile.machine, profile.entries, others)
        return kept.with_entry(history[-1])

    update_profile(change, path or profile_path())
    return restored[0]


def diff(before: Mapping[Problem, ProfileEntry], after: Mapping[Problem, ProfileEntry]) -> tuple[ProfileChange, ...]:
    """Return the problems that are served differently; evidence alone makes no difference."""
    changes = (
        ProfileChange(problem, before.get(problem), after.get(problem)) for problem in dict.fromkeys([*before, *after])
    )
    return tuple(each for each in changes if _served(each.before) != _served(each.after))


def update_profile(
    change: Callable[[Profile], Profile], path: Path, moves_damaged_aside: bool = False
) -> tuple[str, ...]:
    """Load the profile, change it and write it, while no other process does.

    Args:
        change: Returns the new profile; an exception leaves the old one as it is.
        path: The profile; a missing one is empty.
        moves_damaged_aside: Move a profile that cannot be read aside and begin with an empty one.

    Returns:
        A notice for a profile that was moved aside.

    Raises:
        ProfileError: If the profile cannot be read or written, or is a file of another program, which stays.
    """
    path = Path(os.path.realpath(path))  # the same lock for all names of a file
    with _locked(path):
        notices: tuple[str, ...] = ()
        try:
            profile = Profile.load(path) if path.exists() else Profile.empty()
        except ProfileError as error:
            if not moves_damaged_aside:
                raise
            expect_profile(path)
            aside = path.with_name(f"{path.name}.refused-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
            path.rename(aside)
            notices = (f"{error} It was moved to {aside}.",)
            profile = Profile.empty()
        change(profile).save(path)
        return notices


def expect_deployable() -> None:
    """Raise ProfileError if this machine's profile could not be written, or its place holds something else.

    Called before a tuning, so that the winners have a place to go.
    """
    path = Path(os.path.realpath(profile_path()))
    with _locked(path):
        try:
            if path.exists():
                Profile.load(path)
        except ProfileError:
            expect_profile(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from changing the profile at `path` inside this block.

    Raises:
        ProfileError: It cannot be written, or another process holds it.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        expect_regular(path)
        expect_writable(path.parent)
        with filelock.FileLock(lock, timeout=LOCK_TIMEOUT_S):
            yield
    except filelock.Timeout as error:
        raise ProfileError(
            f"cannot write the profile {path}: another process has held {lock} for {LOCK_TIMEOUT_S:.0f} s. End it, or"
            f" name another place in {settings.PROFILE.name}."
        ) from error
    except OSError as error:
        raise unwritable(path, error) from error


def _served(entry: ProfileEntry | None) -> object:
    return entry and (entry.backend, entry.source_hash, dict(entry.config))
