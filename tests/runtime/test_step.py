"""One token through a mixer is the product, the fused step and the product, planned or not, and refused as a whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scanlab.runtime.ops import PrepackedWeight, linear, mixer_step
from scanlab.runtime.step import StepProjections

MODEL, DIM, STATE, RANK, WIDTH = 12, 24, 5, 3, 4


def weights(dtype: torch.dtype) -> tuple[PrepackedWeight, PrepackedWeight, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    into, out = (PrepackedWeight(torch.randn(shape, dtype=dtype)) for shape in ((2 * DIM, MODEL), (MODEL, DIM)))
    shapes = ((DIM, WIDTH), (DIM,), (RANK + 2 * STATE, DIM), (DIM, RANK), (DIM,), (DIM, STATE), (DIM,))
    return into, out, tuple(0.3 * torch.randn(shape, dtype=dtype) for shape in shapes)


def states(batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.zeros(batch, DIM, WIDTH, dtype=dtype), torch.zeros(batch, DIM, STATE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("planned", [True, False])
def test_tokens_are_those_of_the_parts(dtype: torch.dtype, planned: bool) -> None:
    into, out, rest = weights(dtype)
    bias, out_bias = torch.randn(2 * DIM, dtype=dtype), torch.randn(MODEL, dtype=dtype)
    projections = StepProjections(into, out)
    with torch.set_grad_enabled(not planned):  # where gradients are on, no plan is kept
        for batch in (1, 3, 1):
            ours, theirs = states(batch, dtype), states(batch, dtype)
            for _ in range(3):
                hidden = torch.randn(batch, MODEL, dtype=dtype)
                got = projections.step(hidden, bias, out_bias, *ours, *rest)
                want = linear(mixer_step(linear(hidden, into, bias), *theirs, *rest), out, out_bias)
                torch.testing.assert_close(got, want)
                torch.testing.assert_close(ours, theirs)


def test_a_refused_token_leaves_the_states() -> None:
    into, out, rest = weights(torch.float32)
    projections = StepProjections(into, out)
    conv_state, state = states(1, torch.float32)
    with torch.no_grad():
        for _ in range(2):  # the second time with a plan
            with pytest.raises(ValueError, match="must be"):
                projections.step(torch.randn(1, MODEL), None, None, conv_state, state[..., :-1], *rest)
            assert not conv_state.any()
            projections.step(torch.randn(1, MODEL), None, None, *states(1, torch.float32), *rest)
