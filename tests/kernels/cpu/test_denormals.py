"""Denormal numbers are flushed by the native ops, on all threads, and by nothing after them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scanlab.contract.problem import ScanInputs, ScanProblem, make_inputs
from scanlab.runtime import ops as mixer
from scanlab_kernels.selective_scan.native import backend as native

TINY = 1e-40  # below the smallest normal float32
ROWS, DIM = 64, 512


def scanned() -> Tensor:
    problem = ScanProblem(batch=2, dim=DIM, length=ROWS, delta_softplus=False, has_delta_bias=False)
    (inputs,) = make_inputs(problem)
    fields = {name: torch.full_like(tensor, 1.0) for name, tensor in inputs.tensors().items()}
    fields["u"] = torch.full_like(inputs.u, TINY)
    return native.backend.build(problem, {"threads": 2, "channel_tile": 16})(ScanInputs(**fields)).out


def convolved() -> Tensor:
    return mixer.causal_conv1d(torch.full((2, DIM, ROWS), TINY), torch.ones(DIM, 4))


def stepped() -> Tensor:
    x = torch.full((ROWS, DIM), TINY)
    ones = torch.ones(ROWS, 16)
    return mixer.selective_state_update(
        torch.zeros(ROWS, DIM, 16), x, torch.ones_like(x), -torch.ones(DIM, 16), ones, ones
    )


def multiplied() -> Tensor:
    return torch.ops.scanlab_mixer.gemv(torch.full((2, DIM), TINY), torch.eye(DIM), None)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("op", [scanned, convolved, stepped, multiplied])
def test_an_op_flushes_denormals_and_leaves_the_mode_of_its_threads(op: Callable[[], Tensor]) -> None:
    assert not op().any()
    kept = torch.full((4_000_000,), TINY) * 0.5  # on all threads
    assert kept.all()


@pytest.mark.usefixtures("native")
def test_denormals_of_half_precision_are_numbers(isa: str) -> None:
    halves = torch.arange(1, 1024, dtype=torch.int16).view(torch.float16)[None, None]  # all denormals of float16
    identity = torch.tensor([[1.0]])
    assert torch.equal(mixer.causal_conv1d(halves, identity), halves)
