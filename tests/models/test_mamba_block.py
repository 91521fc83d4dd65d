"""The mixer infers with what it derived from its weights, and trains with the weights themselves."""

import copy
import gc
import weakref

import pytest
import torch

from scanlab.models.mamba_block import Mixer, MixerOptions
from scanlab.runtime.dispatch import dispatcher

TOKENS = 40  # enough for a packed product


def mixer(bimamba_type: str = "v2") -> Mixer:
    torch.manual_seed(0)
    options = MixerOptions()
    return Mixer(16, state=4, bimamba_type=bimamba_type, divide_out=True, layer_scale=None, options=options).eval()


@pytest.mark.parametrize("bimamba_type", ["v2", "v1", "none"])
def test_inference_gives_what_training_computes(bimamba_type):
    made, hidden = mixer(bimamba_type), torch.randn(2, TOKENS, 16)
    scan = dispatcher("native")
    with torch.inference_mode():
        inferred = made(hidden, scan)
        again = made(hidden, scan)
    assert torch.equal(inferred, again)
    torch.testing.assert_close(inferred, made(hidden, scan), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["in_proj", "x_proj", "x_proj_b", "dt_proj", "dt_proj_b", "out_proj"])
@pytest.mark.parametrize("counted", [True, False], ids=["in place", "through data and eval"])
def test_weights_that_change_between_two_passes_are_seen(name, counted):
    made, hidden, scan = mixer(), torch.randn(1, TOKENS, 16), dispatcher("native")
    with torch.no_grad():
        before = made(hidden, scan)
        weight = getattr(made, name).weight
        if counted:
            weight.mul_(1.5)
        else:
            weight.data.mul_(1.5)
            made.eval()
        after = made(hidden, scan)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, made(hidden, scan), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["A_log", "A_b_log"])
def test_rates_that_change_are_seen(name):
    made, hidden, scan = mixer(), torch.randn(1, TOKENS, 16), dispatcher("native")
    with torch.no_grad():
        before = made(hidden, scan)
        getattr(made, name).add_(1.0)
        after = made(hidden, scan)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, made(hidden, scan), rtol=1e-5, atol=1e-6)


class Adapted(torch.nn.Module):
    """A layer and what was learned beside it, as adapters wrap one."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.beside = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)

    weight = property(lambda self: self.layer.weight)
    bias = property(lambda self: self.layer.bias)

    def forward(self, x):
        return self.layer(x) + self.beside(x)


@pytest.mark.parametrize("name", ["in_proj", "x_proj", "x_proj_b", "dt_proj", "dt_proj_b", "out_proj"])
def test_an_adapted_layer_is_called_and_the_adapter_learns(name):
    made, hidden, scan = mixer(), torch.randn(1, TOKENS, 16), dispatcher("native")
    merged = copy.deepcopy(made)
    adapted = Adapted(getattr(made, name))
    setattr(made, name, adapted)
    with torch.no_grad():
        getattr(merged, name).weight.add_(adapted.beside.weight)
    torch.testing.assert_close(made(hidden, scan), merged(hidden, scan), rtol=1e-4, atol=1e-5)
    made(hidden, scan).square().sum().backward()
    merged(hidden, scan).square().sum().backward()
    grad, expected = adapted.beside.weight.grad, getattr(merged, name).weight.grad
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["in_proj", "conv1d", "conv1d_b", "x_proj", "x_proj_b", "dt_proj", "out_proj"])
def test_a_layer_with_a_hook_is_called(name):
    made, hidden, scan, calls = mixer(), torch.randn(1, TOKENS, 16), dispatcher("native"), []
    expected = made(hidden, scan)
    getattr(made, name).register_forward_hook(lambda *_: calls.append(name))
    torch.testing.assert_close(made(hidden, scan), expected, rtol=1e-4, atol=1e-5)
    assert calls == [name]


def test_a_parametrized_weight_is_the_one_computed_with():
    made, hidden, scan = mixer(), torch.randn(1, TOKENS, 16), dispatcher("native")
    torch.nn.utils.parametrizations.weight_norm(made.in_proj)
    with torch.no_grad():
        before = made(hidden, scan)
        made.in_proj.parametrizations.weight.original0.mul_(1.5)
        after = made(hidden, scan)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, made(hidden, scan), rtol=1e-5, atol=1e-6)


def test_nothing_of_the_weights_stays_behind_when_they_are_moved():
    made = mixer()
    with torch.no_grad():
        made(torch.randn(1, TOKENS, 16), dispatcher("native"))
    before = weakref.ref(made.in_proj.weight.untyped_storage())
    made.double()
    gc.collect()
    assert before() is None
