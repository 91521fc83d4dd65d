"""The step of Mamba-2's scan checks its tensors before it writes to the state."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scanlab.errors import ProblemError
from scanlab.runtime.ssd import ssd_update


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("dt", (3, 1), r"dt is \(3, 1\): must be \(3, 2\)"),
        ("A_log", (1,), r"A_log is \(1,\): must be \(2,\)"),
        ("D", (1,), r"D is \(1,\): must be \(2,\)"),
        ("dt_bias", (1,), r"dt_bias is \(1,\): must be \(2,\)"),
        ("x", (3, 16), r"x is \(3, 16\), state is \(3, 2, 8, 4\)"),
    ],
)
def test_what_does_not_fit_leaves_the_state(name: str, shape: tuple[int, ...], said: str) -> None:
    state = torch.randn(3, 2, 8, 4)
    arguments: dict[str, Any] = {
        "x": torch.randn(3, 2, 8),
        "dt": torch.rand(3, 2),
        "A_log": torch.rand(2),
        "B": torch.randn(3, 1, 4),
        "C": torch.randn(3, 1, 4),
        "D": torch.rand(2),
        "dt_bias": torch.rand(2),
    }
    before = state.clone()
    with pytest.raises(ProblemError, match=said):
        ssd_update(state, **arguments | {name: torch.rand(shape)})
    assert torch.equal(state, before)
