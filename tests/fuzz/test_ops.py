"""A few random calls of every op, the same ones everywhere; `make fuzz` makes others for minutes."""

from __future__ import annotations

import pytest

from fuzz.campaign import attempt
from fuzz.generators import GENERATORS

CALLS = 24

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of torch, about the hostile arguments
    pytest.mark.usefixtures("native"),
]


@pytest.mark.parametrize("op", GENERATORS)
def test_calls_are_right_or_refused(op: str) -> None:
    faults = [fault for seed in range(CALLS) for fault in attempt(op, seed)[1]]
    assert not faults, "\n".join(faults)
