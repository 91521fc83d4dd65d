"""Scans of tensors without elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from scanlab import selective_scan_fn
from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm.ops.selective_scan_interface import selective_scan_ref

EMPTY = [(0, 6, 9), (2, 0, 9), (2, 6, 0)]


def tensors(batch: int, dim: int, length: int) -> Any:
    """Return u, delta, A, B and C."""
    projections = torch.randn(2, batch, 3, length)
    return torch.randn(batch, dim, length), torch.rand(batch, dim, length), -torch.rand(dim, 3), *projections


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("scan", [selective_scan_fn, selective_scan_ref])
def test_gives_nothing_and_the_states_before(
    scan: Callable[..., tuple[torch.Tensor, torch.Tensor]], shape: tuple[int, int, int]
) -> None:
    results: Any = scan(*tensors(*shape), return_last_state=True)
    out, last_state = results
    assert out.shape == shape
    assert torch.equal(last_state, torch.zeros(shape[0], shape[1], 3))


@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_has_gradients_of_zero(shape: tuple[int, int, int]) -> None:
    leaves = [each.requires_grad_() for each in tensors(*shape)]
    out, last_state = selective_scan_fn(*leaves, return_last_state=True)
    (out.sum() + last_state.sum()).backward()
    assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in leaves)


def test_refuses_tensors_that_do_not_fit() -> None:
    u, delta, A, B, C = tensors(0, 6, 9)
    with pytest.raises(ProblemError, match="B is float32"):
        selective_scan_fn(u, delta, A, B[..., :8], C)


def test_scans_integers_as_float32() -> None:
    u, delta, A, B, C = tensors(1, 6, 9)
    u = (3 * u).long()
    out: Any = selective_scan_fn(u, delta, A, B, C)
    expected: Any = selective_scan_fn(u.float(), delta, A, B, C)
    assert out.dtype == torch.int64
    assert torch.equal(out, expected.long())
