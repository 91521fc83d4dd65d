"""Layers of the drop-in's Mamba that do more than multiply with their weight: they are called, and they learn."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune

from scanlab.integrations.mamba_ssm.modules.mamba_simple import Mamba

pytestmark = [
    pytest.mark.usefixtures("two_phase_scan"),
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated"),
]

LAYERS = ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")
REVERSE = ("conv1d_b", "x_proj_b", "dt_proj_b")
X = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))


def in_steps(mamba: Mamba, x: Tensor) -> Tensor:
    states = mamba.allocate_inference_cache(len(x), x.shape[1])
    with torch.no_grad():
        return torch.cat([mamba.step(token, *states)[0] for token in x.split(1, dim=1)], 1)


@pytest.mark.parametrize(
    ("bimamba_type", "name"),
    [*((kind, name) for kind in ("none", "v1", "v2") for name in LAYERS), *(("v2", name) for name in REVERSE)],
)
@pytest.mark.parametrize("gradients", [True, False])
def test_a_hook_is_called_once_and_changes_nothing_by_itself(bimamba_type, name, gradients):
    mamba, calls = Mamba(16, bimamba_type=bimamba_type, init_layer_scale=0.5, bias=True), []
    with torch.set_grad_enabled(gradients):
        expected = mamba(X)
        getattr(mamba, name).register_forward_hook(lambda *_: calls.append(name))
        torch.testing.assert_close(mamba(X), expected)
    assert calls == [name]


@pytest.mark.parametrize("name", LAYERS)
def test_a_hook_is_called_by_every_step(name):
    mamba, calls = Mamba(16), []
    expected = in_steps(mamba, X)
    getattr(mamba, name).register_forward_pre_hook(lambda *_: calls.append(name))
    torch.testing.assert_close(in_steps(mamba, X), expected)
    assert len(calls) == 9


@pytest.mark.parametrize("name", LAYERS)
def test_what_a_hook_returns_is_computed_with(name):
    mamba = Mamba(16)
    expected = mamba(X)
    getattr(mamba, name).register_forward_hook(lambda module, arguments, out: 0.5 * out)
    assert not torch.allclose(mamba(X), expected)


def test_hooks_on_gradients_are_called():
    mamba, calls = Mamba(16), []
    mamba.x_proj.register_full_backward_hook(lambda *_: calls.append("x_proj"))
    mamba(X).sum().backward()
    assert calls == ["x_proj"]


def test_torch_s_global_hooks_are_called():
    mamba, called = Mamba(16), set()
    handle = register_module_forward_hook(lambda module, *_: called.add(module))
    try:
        mamba(X)
        in_steps(mamba, X)
    finally:
        handle.remove()
    assert {getattr(mamba, name) for name in LAYERS} <= called


@pytest.mark.parametrize("options", [{}, {"bias": True, "d_conv": 3}])
def test_without_the_fast_path_every_projection_is_called(options):
    mamba, called = Mamba(16, use_fast_path=False, **options), []
    expected = Mamba(16, **options)
    expected.load_state_dict(mamba.state_dict())
    for name in ("in_proj", "x_proj", "out_proj"):
        getattr(mamba, name).forward = lambda x, name=name: called.append(name) or getattr(expected, name)(x)
    torch.testing.assert_close(mamba(X), expected(X))
    assert called == ["in_proj", "x_proj", "out_proj"]


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    "change",
    [
        pruned,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
    ],
    ids=["prune", "weight_norm", "spectral_norm", "parametrized weight_norm", "parametrized spectral_norm"],
)
def test_a_weight_that_is_computed_is_trained(change, name):
    torch.manual_seed(1)  # a spectral norm changes with each call, and may raise the loss more than a step lowers it
    mamba = Mamba(16)
    change(getattr(mamba, name))
    merged = Mamba(16)
    merged.load_state_dict(mamba.state_dict(), strict=False)
    optimizer = torch.optim.SGD(mamba.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = (mamba(X) - X).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert all(parameter.grad.any() for parameter in getattr(mamba, name).parameters())
    mamba.eval()
    with torch.no_grad():
        mamba(X)  # weights computed in a hook are those of the last call
        merged.load_state_dict(mamba.state_dict(), strict=False)
        getattr(merged, name).weight.copy_(getattr(mamba, name).weight)
        torch.testing.assert_close(mamba(X), merged(X))


class LowRank(nn.Module):
    """A frozen layer and a low-rank product beside it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


@pytest.mark.parametrize("name", ["in_proj", "x_proj", "dt_proj", "out_proj"])
def test_an_adapter_is_called_and_learns(name):
    mamba = Mamba(16)
    merged = copy.deepcopy(mamba)
    adapter = LowRank(getattr(mamba, name))
    setattr(mamba, name, adapter)
    with torch.no_grad():
        getattr(merged, name).weight.add_(adapter.up.weight @ adapter.down.weight)
    torch.testing.assert_close(mamba(X), merged(X))
    torch.testing.assert_close(in_steps(mamba, X), in_steps(merged, X))
    mamba(X).sum().backward()
    assert adapter.down.weight.grad.any()
    assert adapter.up.weight.grad.any()
