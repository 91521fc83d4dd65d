"""A claim of the experiment on trust."""

from typing import NamedTuple


class Claim(NamedTuple):
    """A row of the page: a trial, its number of repetitions and of failures, and the allowed number of failures."""

    claim: str
    tried: int
    wrong: int
    allowed: int
    seconds: float
    said: str
    setting: str = ""

    @property
    def holds(self) -> bool:
        """True where it went wrong no more often than it may."""
        return self.wrong <= self.allowed and self.tried > 0
