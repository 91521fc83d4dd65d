"""Strength of the evidence that a choice rests on, from none to a hold-out comparison."""

from __future__ import annotations

from enum import IntEnum


class EvidenceRank(IntEnum):
    """Order of evidence, weakest first; a choice is never replaced on weaker evidence than its own.

    Attributes:
        NONE: No measurement, or one of another source or another machine.
        DISTURBED: Timed, but too few blocks were free of interference from other processes.
        SEARCH: Clean blocks of the search, beside the baseline alone.
        COMPARISON: Interleaved clean rounds beside its rivals and the defaults.
        HOLDOUT: A comparison on fresh inputs in fresh processes, after the choice was made.
    """

    NONE = 0
    DISTURBED = 1
    SEARCH = 2
    COMPARISON = 3
    HOLDOUT = 4

    @property
    def label(self) -> str:
        """Name of the rank in lower case: "hold-out", "comparison", "search", "disturbed" or "none"."""
        return "hold-out" if self is EvidenceRank.HOLDOUT else self.name.lower()

    def may_replace(self, other: EvidenceRank) -> bool:
        """Return whether a choice with this evidence may replace one with `other`; needs clean blocks at least."""
        return self >= max(other, EvidenceRank.SEARCH)


# By the phase of a trial; scanlab 0.1 wrote "race" for a comparison.
RANKS = {
    "search": EvidenceRank.SEARCH,
    "comparison": EvidenceRank.COMPARISON,
    "race": EvidenceRank.COMPARISON,
    "holdout": EvidenceRank.HOLDOUT,
}
# Clean blocks that make a comparison or a hold-out evidence of their rank; as many as an interval at 95 % needs.
MIN_BLOCKS_OF_RANK = 6


def rank_of(phase: str, is_disturbed: bool, num_clean: int) -> EvidenceRank:
    """Return the rank of a trial that was measured.

    Args:
        phase: Phase of the trial; any other than a search, a comparison or a hold-out chooses nothing.
        is_disturbed: Whether its state says so.
        num_clean: Number of its clean blocks.
    """
    if is_disturbed or num_clean == 0:
        return EvidenceRank.DISTURBED
    rank = RANKS.get(phase, EvidenceRank.NONE)
    return rank if num_clean >= MIN_BLOCKS_OF_RANK else min(rank, EvidenceRank.SEARCH)
