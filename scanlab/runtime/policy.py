"""Rules of which backend serves each op, for comparisons of whole models: tuned, untuned, or named backends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Self

# Selections that are not backends: the profile first, or the choice as if nothing had been tuned.
TUNED, DEFAULT = "tuned", "default"


@dataclass(frozen=True)
class Policy:
    """Selection of a backend for each op: "tuned", "default", or a backend such as "chunked:chunk=32".

    Attributes:
        selections: Pairs of an op's name and its selection.
        others: Selection for the ops that `selections` does not name.
        profile: File of the profile that "tuned" follows; this machine's where None.
    """

    selections: tuple[tuple[str, str], ...] = ()
    others: str = TUNED
    profile: Path | None = None

    @classmethod
    def of(cls, selections: Mapping[str, str], others: str = TUNED, profile: Path | None = None) -> Self:
        """Return the policy with these selections by the name of the op."""
        return cls(tuple(sorted(selections.items())), others, profile)

    def selection(self, op: str) -> str:
        """Return the selection for the op called `op`."""
        return dict(self.selections).get(op, self.others)

    @property
    def follows_profile(self) -> bool:
        """True if the profile's choice serves some op."""
        return TUNED in (self.others, *dict(self.selections).values())


_active: ContextVar[Policy | None] = ContextVar("_active", default=None)
# The policy in force, or None: this machine's profile and environment decide.
current = _active.get


@contextmanager
def serve_by(policy: Policy) -> Iterator[None]:
    """Serve the ops that the calling thread calls inside this block by `policy`."""
    token = _active.set(policy)
    try:
        yield
    finally:
        _active.reset(token)
