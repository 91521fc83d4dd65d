"""Every solver solves the recurrence in place, for every length, and its gradient is that of a plain loop."""

import pytest
import torch

from scanlab_kernels.selective_scan import cpp_torch, recurrence

LENGTHS = (*range(1, 18), 31, 64, 100)


@pytest.fixture(params=["sequential", "logarithmic", "cpp_torch"])
def solve(request):
    if request.param != "cpp_torch":
        return getattr(recurrence, request.param)
    reason = cpp_torch.backend.unavailable()
    if reason is not None:
        pytest.skip(reason)
    cpp_torch.LIBRARY.load()
    return cpp_torch.solve


def draw(length, dtype=torch.float64):
    generator = torch.Generator().manual_seed(length)
    decay, drive = (torch.randn(length, 2, 3, dtype=dtype, generator=generator) for _ in range(2))
    return decay, drive, torch.randn(2, 3, dtype=dtype, generator=generator)


def plain_loop(decay, drive, h):
    states = []
    for rate, push in zip(decay, drive, strict=True):
        h = rate * h + push
        states.append(h)
    return torch.stack(states)


@pytest.mark.parametrize("length", LENGTHS)
def test_solves_in_place(solve, length):
    decay, drive, h = draw(length)
    expected, kept = plain_loop(decay, drive, h), decay.clone()
    states = recurrence.solved(decay, drive, h, solve)
    torch.testing.assert_close(states, expected)
    assert states.data_ptr() == drive.data_ptr()
    assert torch.equal(decay, kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("length", [1, 2, 7])
def test_gradients(solve, length, dtype):
    operands = tuple(tensor.requires_grad_() for tensor in draw(length, dtype))
    # The drive is overwritten, which a leaf must not be.
    assert torch.autograd.gradcheck(lambda decay, drive, h: recurrence.solved(decay, drive * 1, h, solve), operands)


def test_a_view_may_be_solved_in_place():
    decay, drive, h = (tensor.requires_grad_() for tensor in draw(5))

    def gradients(solved):
        return torch.autograd.grad(solved.square().sum(), (decay, drive, h))

    time_last = (drive * 1).movedim(0, -1).contiguous()
    in_place = recurrence.solved(decay, time_last.movedim(-1, 0), h, recurrence.sequential)
    for got, expected in zip(gradients(in_place), gradients(plain_loop(decay, drive, h)), strict=True):
        torch.testing.assert_close(got, expected)


def test_second_derivatives_are_refused():
    decay, drive, h = (tensor.requires_grad_() for tensor in draw(4))
    states = recurrence.solved(decay, drive * 1, h, recurrence.sequential)
    (first,) = torch.autograd.grad(states.square().sum(), decay, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives.*SCANLAB_BACKEND=reference"):
        torch.autograd.grad(first.sum(), decay)
