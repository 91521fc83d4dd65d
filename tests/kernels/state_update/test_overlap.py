"""States that are written in place must have memory of their own; nothing is written where they have not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scanlab.runtime import ops as mixer

DIM, WIDE = 3, 4


def convolve(state: Tensor, x: Tensor) -> Tensor:
    return mixer.causal_conv1d_update(x, state, torch.randn(DIM, WIDE))


def update(state: Tensor, x: Tensor) -> Tensor:
    B = C = torch.randn(len(x), WIDE)
    return mixer.selective_state_update(state, x, torch.randn(x.shape), torch.randn(DIM, WIDE), B, C)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("step", [convolve, update])
def test_a_state_that_overlaps_itself_or_its_input_is_refused(step: Callable[[Tensor, Tensor], Tensor]) -> None:
    one = torch.randn(1, DIM, WIDE)
    memory = torch.randn(2 * DIM * WIDE)
    overlapping = {
        "itself": (one.expand(2, -1, -1), torch.randn(2, DIM)),
        "x": (memory.view(2, DIM, WIDE), memory[4 : 4 + 2 * DIM].view(2, DIM)),
    }
    for what, (state, x) in overlapping.items():
        before = state.clone()
        with pytest.raises(RuntimeError, match="memory location|partially overlap|overlap"):
            step(state, x)
        assert torch.equal(state, before), f"a state that overlaps {what} was written"
