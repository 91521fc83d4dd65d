"""Tensors computed from weights are kept as long as the weights stay unchanged, and no longer."""

import copy
import pickle

import pytest
import torch
from torch.autograd import forward_ad

from scanlab.runtime.ops import WeightCache


class Maker:
    """Doubles weights, and counts how often."""

    def __init__(self, *weights):
        self.weights = weights
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return [2.0 * weight for weight in self.weights]


@pytest.fixture(params=["native", "torch"], autouse=True)
def ops(request, native, monkeypatch):
    """Weights are looked at natively, and in PyTorch."""
    if request.param == "torch":
        monkeypatch.setattr("scanlab_kernels.weight_cache.extension.is_loaded", lambda: False)


def test_it_is_made_once_and_anew_when_a_weight_changes_in_place():
    derived, one, other = WeightCache(), torch.ones(3), torch.zeros(3)
    make = Maker(one, other)
    assert derived(make, one, None, other) is derived(make, one, None, other)
    assert make.calls == 1
    other.add_(1.0)
    assert torch.equal(derived(make, one, None, other)[1], torch.full((3,), 2.0))


def test_other_weights_make_it_anew():
    derived = WeightCache()
    for value in (1.0, 2.0, 3.0):  # each likely where the one before it lay
        other = torch.full((3,), value)
        assert torch.equal(derived(Maker(other), other)[0], 2.0 * other)
        del other


def test_another_view_of_the_same_memory_makes_it_anew():
    derived, weight = WeightCache(), torch.arange(12.0).view(3, 4)
    for view in (weight, weight.view(4, 3), weight.view(4, 3).mT, weight[:2], weight[:, :2]):
        assert torch.equal(derived(Maker(view), view)[0], 2.0 * view)


def test_with_gradients_nothing_is_kept():
    derived, weight = WeightCache(), torch.ones(3, requires_grad=True)
    make = Maker(weight)
    derived(make, weight)
    (gradient,) = torch.autograd.grad(derived(make, weight)[0].sum(), weight)
    assert make.calls == 2
    assert torch.equal(gradient, torch.full((3,), 2.0))
    with torch.no_grad():
        derived(make, weight)
        derived(make, weight)
    assert make.calls == 3


def test_of_a_tangent_nothing_is_lost():
    derived, weight = WeightCache(), torch.ones(3)
    derived(Maker(weight), weight)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(weight, torch.full((3,), 5.0))
        tangent = forward_ad.unpack_dual(derived(Maker(dual), dual)[0]).tangent
    assert torch.equal(tangent, torch.full((3,), 10.0))


def test_what_was_made_in_inference_mode_serves_gradients_of_others():
    derived, weight, x = WeightCache(), torch.ones(3), torch.ones(3, requires_grad=True)
    make = Maker(weight)
    with torch.inference_mode():
        derived(make, weight)
    (gradient,) = torch.autograd.grad((x * derived(make, weight)[0]).sum(), x)
    assert torch.equal(gradient, torch.full((3,), 2.0))
    assert make.calls == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(40, 50), (3,), (5, 1, 4), ()])
def test_weights_that_change_through_data_are_seen(dtype, shape):
    derived, weight = WeightCache(), torch.ones(shape, dtype=dtype)
    make = Maker(weight)
    derived(make, weight)
    weight.data.add_(1.0)
    assert torch.equal(derived(make, weight)[0], torch.full(shape, 4.0, dtype=dtype))


@pytest.mark.parametrize("shape", [(768, 192), (192, 384), (384, 12), (384, 16), (40, 50), (384,)])
@pytest.mark.parametrize(
    "part", ["all but the first column", "all but the first row", "the latter half", "every other"]
)
def test_changes_of_a_part_through_data_are_seen(shape, part):
    derived, weight = WeightCache(), torch.ones(shape)
    make = Maker(weight)
    derived(make, weight)
    changed = {
        "all but the first column": weight.data[..., 1:],
        "all but the first row": weight.data[1:],
        "the latter half": weight.data[shape[0] // 2 :],
        "every other": weight.data[..., ::2],
    }
    changed[part].mul_(2.0)
    assert torch.equal(derived(make, weight)[0], 2.0 * weight)


def test_a_single_value_that_changes_through_data_is_seen_after_forget():
    derived, weight = WeightCache(), torch.ones(40, 50)
    make = Maker(weight)
    derived(make, weight)
    weight.data[0, 1] = 2.0
    derived.clear()
    assert derived(make, weight)[0][0, 1] == 4.0


def test_another_thread_may_forget_meanwhile(monkeypatch):
    derived, weight = WeightCache(), torch.ones(3)

    class ForgottenMeanwhile:
        def __eq__(self, other):
            derived.clear()
            return True

    monkeypatch.setattr("scanlab_kernels.weight_cache.fingerprint", lambda weights: ForgottenMeanwhile())
    make = Maker(weight)
    kept = derived(make, weight)
    assert derived(make, weight) is kept
    assert make.calls == 1


def test_an_empty_weight_is_kept():
    derived, weight = WeightCache(), torch.ones(0, 3)
    make = Maker(weight)
    assert derived(make, weight) is derived(make, weight)


def test_copies_start_empty():
    derived, weight = WeightCache(), torch.ones(3)
    make = Maker(weight)
    derived(make, weight)
    for other in (copy.deepcopy(derived), pickle.loads(pickle.dumps(derived))):
        other(make, weight)
    assert make.calls == 3
