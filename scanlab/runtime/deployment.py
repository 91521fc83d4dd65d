"""Changes of this machine's profile: deploy, remove, restore. Several processes may make them at the same moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import filelock

from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.evidence import EvidenceRank
from scanlab.contract.files import expect_regular
from scanlab.errors import ProfileError, UnknownBackendError
from scanlab.runtime.profile import Profile, ProfileEntry, expect_profile, profile_path, unwritable


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
            if existing is not None and not _may_replace(entry, existing):
                notices.append(
                    f"{entry.problem.key}: {entry.backend} was not deployed, because its evidence ({entry.rank.label})"
                    f" is weaker than that of {existing.backend} ({existing.rank.label}), which goes on serving. Tune"
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
    try:
        expect_regular(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(path.name + ".lock")):
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
    except OSError as error:
        raise unwritable(path, error) from error


def expect_deployable() -> None:
    """Raise ProfileError if this machine's profile could not be written: its place holds something else.

    Called before a tuning, so that the winners have a place to go.
    """
    path = profile_path()
    try:
        expect_regular(path)
        if path.exists():
            Profile.load(path)
    except OSError as error:
        raise unwritable(path, error) from error
    except ProfileError:
        expect_profile(path)


def _may_replace(entry: ProfileEntry, existing: ProfileEntry) -> bool:
    try:
        is_stale = existing.source_hash != registry.get(existing.backend).source_hash
    except UnknownBackendError:
        is_stale = True
    rank = EvidenceRank.NONE if is_stale else existing.rank
    # Among choices without evidence from this machine, as those adopted from others, the newer one is taken.
    return rank == EvidenceRank.NONE or entry.rank.may_replace(rank)


def _served(entry: ProfileEntry | None) -> object:
    return entry and (entry.backend, entry.source_hash, dict(entry.config))
