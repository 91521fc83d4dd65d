"""Derivatives of the mixer's native ops: those of torch.func are there, and those that do not exist are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from scanlab.runtime import ops as mixer

BATCH, DIM, LENGTH, WIDTH, STATE = 2, 5, 7, 3, 4
CURE = "in_torch"

pytestmark = pytest.mark.usefixtures("native")


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return mixer.causal_conv1d(x, weight, bias, activation="silu")


def norm(hidden: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    return torch.cat(mixer.add_norm(hidden, residual, weight, kind="layer"))


def conv_step(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return mixer.causal_conv1d_update(x, normal(BATCH, DIM, WIDTH), weight, bias, activation="silu")


def scan_step(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return mixer.selective_state_update(normal(BATCH, DIM, STATE), x, x.detach(), A, B, B.detach())


DIFFERENTIABLE = {
    conv: (normal(BATCH, DIM, LENGTH), normal(DIM, WIDTH), normal(DIM)),
    norm: (normal(BATCH, LENGTH, DIM), normal(BATCH, LENGTH, DIM) / 2, normal(DIM)),
}
STEPS = {
    conv_step: (normal(BATCH, DIM), normal(DIM, WIDTH), normal(DIM)),
    scan_step: (normal(BATCH, DIM), -normal(DIM, STATE).abs(), normal(BATCH, STATE)),
}
Op = Callable[..., Tensor]


def of_one(op: Op, tensors: tuple[Tensor, ...], number: int) -> Callable[[Tensor], Tensor]:
    """The sum of squares of what `op` returns, as a function of one of its tensors."""
    return lambda tensor: op(*tensors[:number], tensor, *tensors[number + 1 :]).square().sum()


@pytest.mark.parametrize("op", DIFFERENTIABLE)
@pytest.mark.parametrize("number", range(3))
def test_gradients_by_torch_func_are_those_of_autograd(op: Op, number: int) -> None:
    tensors = DIFFERENTIABLE[op]
    function = of_one(op, tensors, number)
    batch = torch.stack((tensors[number], 2 * tensors[number]))
    each = torch.func.vmap(torch.func.grad(function))(batch)
    for found, tensor in zip(each, batch, strict=True):
        leaf = tensor.clone().requires_grad_()
        (want,) = torch.autograd.grad(function(leaf), leaf)
        torch.testing.assert_close(found, want)
        torch.testing.assert_close(torch.func.grad(function)(tensor), want)


@pytest.mark.parametrize("op", DIFFERENTIABLE | STEPS)
@pytest.mark.parametrize("number", range(3))
def test_tangents_are_refused(op: Op, number: int) -> None:
    tensors = (DIFFERENTIABLE | STEPS)[op]
    function, tensor = of_one(op, tensors, number), tensors[number]
    for wants_gradient in (False, True):
        leaf = tensor.clone().requires_grad_(wants_gradient)
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"no forward-mode derivative.*{CURE}"):
            function(forward_ad.make_dual(leaf, tensor))
    with pytest.raises(NotImplementedError, match=f"no forward-mode derivative.*{CURE}"):
        torch.func.jvp(function, (tensor,), (tensor,))
    with mixer.in_torch():
        tangent = torch.func.jvp(function, (tensor,), (tensor,))[1]
    assert tangent != 0


@pytest.mark.parametrize("op", DIFFERENTIABLE)
@pytest.mark.parametrize("number", range(3))
def test_second_derivatives_are_refused(op: Op, number: int) -> None:
    tensors = DIFFERENTIABLE[op]
    function, tensor = of_one(op, tensors, number), tensors[number]
    with pytest.raises(NotImplementedError, match=f"_backward has no derivative.*{CURE}"):
        torch.autograd.functional.hessian(function, tensor)
    with mixer.in_torch():
        assert torch.autograd.functional.hessian(function, tensor).any()
