"""A claim of the experiment on trust."""

from typing import NamedTuple


class Claim(NamedTuple):
    """A row of the page: what was tried how often, how often it went wrong, and how often it may."""

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
