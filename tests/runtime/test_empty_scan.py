"""Scans of tensors without elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from scanlab import selective_scan_fn
from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm.ops.selective_scan_interface import selective_scan_ref
from scanlab.runtime.cross_scan import cross_scan_2d
from scanlab.runtime.ssd import ssd
from scanlab_kernels.cross_scan_2d.problem import CrossScanInputs
from scanlab_kernels.ssd.problem import SsdInputs

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


def ssd_inputs(batch: int, length: int, heads: int, head_dim: int) -> SsdInputs:
    """Return inputs of Mamba-2's scan that want gradients."""
    x, dt = torch.randn(batch, length, heads, head_dim), torch.rand(batch, length, heads)
    given = (x, dt, -torch.rand(heads), *torch.randn(2, batch, length, 1, 3), torch.randn(heads))
    return SsdInputs(*(each.requires_grad_() for each in given))


@pytest.mark.parametrize("sizes", [(0, 5, 2, 4), (2, 0, 2, 4), (2, 5, 0, 4), (2, 5, 2, 0)], ids=str)
def test_mamba_2_gives_nothing_and_the_states_before(sizes: tuple[int, int, int, int]) -> None:
    inputs = ssd_inputs(*sizes)
    batch, _, heads, head_dim = sizes
    before = torch.randn(batch, heads, head_dim, 3)
    out, final_state = ssd(inputs._replace(initial_state=before))
    assert out.shape == inputs.x.shape
    assert torch.equal(final_state, before)
    (out.sum() + final_state.sum()).backward()
    assert all(torch.equal(each.grad, torch.zeros_like(each)) for each in inputs[:6])
    with pytest.raises(ProblemError, match="dt is"):
        ssd(inputs._replace(dt=torch.rand(7, 7, 7)))


@pytest.mark.parametrize("sizes", [(0, 4, 3, 5), (2, 4, 0, 5), (2, 4, 3, 0)], ids=str)
def test_a_feature_map_without_elements_gives_one(sizes: tuple[int, int, int, int]) -> None:
    batch, dim, height, width = sizes
    inputs = CrossScanInputs(
        torch.randn(sizes, requires_grad=True),
        torch.rand(batch, 4, dim, height, width),
        torch.rand(4, dim, 3, requires_grad=True),
        *torch.randn(2, batch, 4, 3, height, width),
    )
    out = cross_scan_2d(inputs)
    out.sum().backward()
    assert out.shape == sizes
    assert not inputs.A.grad.any()
    with pytest.raises(ProblemError, match="B is"):
        cross_scan_2d(inputs._replace(B=torch.rand(3, 3)))


def test_complex_numbers_are_not_cut_to_real_ones() -> None:
    inputs = ssd_inputs(1, 5, 2, 4)
    with pytest.raises(ProblemError, match="A is torch.complex64: must be real numbers"):
        ssd(inputs._replace(A=inputs.A.to(torch.complex64)))
    with pytest.raises(ProblemError, match="seq_idx is torch.float32: must be whole numbers"):
        ssd(inputs._replace(seq_idx=torch.zeros(1, 5)))
