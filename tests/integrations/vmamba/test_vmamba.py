"""VMamba's modules against the float64 scan and its autograd, and how its code imports them."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from torch import Tensor

from helpers.official_names import untouched
from scanlab import selective_scan_fn
from scanlab.integrations import mamba_ssm as drop_in

TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def served():
    with untouched():
        drop_in.install()
        yield


def inputs(dtype: torch.dtype, state: int = 3, groups: int = 4, optional: bool = True) -> list[Tensor | None]:
    """Return u, delta, A, B, C, D and delta_bias of four directions of three channels."""
    random = torch.Generator().manual_seed(0)
    batch, dim, length = 2, 12, 10

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    varying = [normal(batch, dim, length), normal(batch, dim, length) / 2]
    A = -normal(dim, state).exp()
    B, C = (normal(batch, groups, state, length) for _ in "BC")
    weights = [normal(dim), normal(dim) / 2] if optional else [None, None]
    weight = torch.float64 if dtype == torch.float64 else torch.float32
    u, delta, B, C = (each.to(dtype) for each in (*varying, B, C))
    return [u, delta, A.to(weight), B, C, *(None if each is None else each.to(weight) for each in weights)]


def expected(given: list[Tensor | None], dout: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Return the output and the gradients of the inputs, all in float64."""
    leaves = [None if each is None else each.double().requires_grad_() for each in given]
    u, delta, A, B, C, D, bias = leaves
    out = selective_scan_fn(u, delta, A, B, C, D, None, bias, True, backend="reference")
    found = iter(torch.autograd.grad(out, [each for each in leaves if each is not None], dout.double()))
    return out.detach(), [None if each is None else next(found) for each in leaves]


def assert_near(found: Tensor, right: Tensor, dtype: torch.dtype) -> None:
    """Compare in float64, with a tolerance relative to the largest value."""
    difference = (found.double() - right).abs().max()
    assert found.shape == right.shape
    assert difference <= TOLERANCES[dtype] * right.abs().max()


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "options", "out_float"),
    [
        ("selective_scan_cuda_core", (), False),
        ("selective_scan_cuda_nrow", (), False),
        ("selective_scan_cuda_oflex", (False,), False),
        ("selective_scan_cuda_oflex", (True,), True),
    ],
)
def test_the_compiled_modules_agree_with_float64(name, options, out_float, dtype, optional):
    module = importlib.import_module(name)
    given = inputs(dtype, optional=optional)
    out, x = module.fwd(*given, True, 1, *options)
    assert out.dtype == (torch.promote_types(dtype, torch.float32) if out_float else dtype)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    right, gradients = expected(given, dout)
    assert_near(out, right, dtype if not out_float or dtype == torch.float64 else torch.float32)
    for tensor, found, gradient in zip(given, module.bwd(*given, dout, x, True, 1), gradients, strict=True):
        if tensor is None:
            assert found is None
        else:
            assert found.dtype == tensor.dtype
            assert_near(found, gradient, dtype)


def test_ndstate_has_no_axis_of_the_state():
    module = importlib.import_module("selective_scan_cuda_ndstate")
    u, delta, A, B, C, D, bias = given = inputs(torch.float32, state=1)
    bare = [u, delta, A.squeeze(1), B.squeeze(2), C.squeeze(2), D, bias]
    out, x = module.fwd(*bare, True, 1)
    dout = torch.ones_like(out)
    right, gradients = expected(given, dout)
    assert_near(out, right, torch.float32)
    for tensor, found, gradient in zip(bare, module.bwd(*bare, dout, x, True, 1), gradients, strict=True):
        assert_near(found, gradient.reshape(tensor.shape), torch.float32)


def test_oflex_repeats_channels_of_delta():
    module = importlib.import_module("selective_scan_cuda_oflex")
    u, delta, A, B, C, D, bias = inputs(torch.float32)
    delta, bias = delta[:, ::3].contiguous(), bias[::3].contiguous()
    given = [u, delta.repeat_interleave(3, 1), A, B, C, D, bias.repeat_interleave(3)]
    out, x = module.fwd(u, delta, A, B, C, D, bias, True, 1, True)
    dout = torch.ones_like(out)
    right, gradients = expected(given, dout)
    found = module.bwd(u, delta, A, B, C, D, bias, dout, x, True, 1)
    assert_near(out, right, torch.float32)
    assert_near(found[1], gradients[1].unflatten(1, (-1, 3)).sum(2), torch.float32)
    assert_near(found[6], gradients[6].unflatten(0, (-1, 3)).sum(1), torch.float32)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_function_of_the_compiled_module_is_traced():
    module = importlib.import_module("selective_scan_cuda_oflex")

    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            return module.fwd(*tensors, True, 1, True)[0]

    given = inputs(torch.float32)
    traced = torch.jit.trace(lambda *tensors: Scan.apply(*tensors), tuple(given), check_trace=False)
    assert_near(traced(*given), expected(given, torch.ones_like(given[0]))[0], torch.float32)


@pytest.mark.parametrize("name", ["selective_scan", "selective_scan_vmamba", "selective_scan_vmamba_pt202"])
def test_the_python_modules_have_a_differentiable_scan(name):
    module = importlib.import_module(name)
    given = inputs(torch.float32)
    leaves = [each.clone().requires_grad_() for each in given]
    out = module.selective_scan_fn(*leaves, delta_softplus=True, nrows=2)
    out.backward(torch.ones_like(out))
    right, gradients = expected(given, torch.ones_like(out))
    assert_near(out.detach(), right, torch.float32)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert_near(leaf.grad, gradient, torch.float32)


def test_the_packages_hold_the_compiled_module():
    from selective_scan_vmamba_pt202 import selective_scan_cuda_core

    out, _ = selective_scan_cuda_core.fwd(*inputs(torch.float32), True, 1)
    assert out.shape == (2, 12, 10)


def test_a_project_s_own_file_of_the_name_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "selective_scan.py").write_text("def selective_scan_fn(mine):\n    return mine + 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("selective_scan")
    assert module.selective_scan_fn(torch.ones(1)) == 2
    assert not hasattr(module, "selective_scan_ref")
    drop_in.uninstall()
    assert sys.modules["selective_scan"] is module
