"""Order of evidence: a stronger or equal one replaces, a weaker one never does."""

from __future__ import annotations

from itertools import pairwise

import pytest

from scanlab.contract.evidence import EvidenceRank


def test_each_rank_is_replaced_by_its_own_and_stronger_evidence_only():
    for weaker, stronger in pairwise(EvidenceRank):
        assert not weaker.may_replace(stronger)
        assert stronger.may_replace(stronger) == (stronger >= EvidenceRank.SEARCH)


@pytest.mark.parametrize("rank", [EvidenceRank.NONE, EvidenceRank.DISTURBED])
def test_what_was_not_measured_cleanly_replaces_nothing(rank):
    assert not any(rank.may_replace(other) for other in EvidenceRank)


def test_labels_are_words():
    assert [rank.label for rank in EvidenceRank] == ["none", "disturbed", "search", "comparison", "hold-out"]
