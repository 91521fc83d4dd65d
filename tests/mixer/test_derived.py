"""What is derived from a weight is kept as long as the weight stays what it was, and no longer."""

import copy
import pickle

import torch

from scanlab.mixer import Derived


class Maker:
    """Doubles a weight, and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self, weight, factor=2.0):
        self.calls += 1
        return factor * weight


def test_it_is_made_once_and_anew_when_the_weight_changes_in_place():
    make, derived, weight = Maker(), Derived(), torch.ones(3)
    assert derived(make, weight) is derived(make, weight)
    assert make.calls == 1
    weight.add_(1.0)
    assert torch.equal(derived(make, weight), torch.full((3,), 4.0))


def test_other_arguments_and_other_weights_make_it_anew():
    make, derived, weight = Maker(), Derived(), torch.ones(3)
    assert torch.equal(derived(make, weight, 3.0), torch.full((3,), 3.0))
    assert torch.equal(derived(make, weight, 5.0), torch.full((3,), 5.0))
    for value in (1.0, 2.0, 3.0):  # each likely where the one before it lay
        other = torch.full((3,), value)
        assert torch.equal(derived(make, other), 2.0 * other)
        del other


def test_with_gradients_nothing_is_kept():
    make, derived, weight = Maker(), Derived(), torch.ones(3, requires_grad=True)
    derived(make, weight)
    (gradient,) = torch.autograd.grad(derived(make, weight).sum(), weight)
    assert make.calls == 2
    assert torch.equal(gradient, torch.full((3,), 2.0))
    with torch.no_grad():
        derived(make, weight)
        derived(make, weight)
    assert make.calls == 3


def test_a_weight_that_changes_through_data_is_seen():
    make, derived, weight = Maker(), Derived(), torch.ones(40, 50)
    derived(make, weight)
    weight.data.add_(1.0)
    assert torch.equal(derived(make, weight), torch.full((40, 50), 4.0))


def test_a_single_value_that_changes_through_data_is_seen_after_forget():
    make, derived, weight = Maker(), Derived(), torch.ones(40, 50)
    derived(make, weight)
    weight.data[0, 1] = 2.0
    derived.forget()
    assert derived(make, weight)[0, 1] == 4.0


def test_copies_start_empty():
    make, derived, weight = Maker(), Derived(), torch.ones(3)
    derived(make, weight)
    for other in (copy.deepcopy(derived), pickle.loads(pickle.dumps(derived))):
        other(make, weight)
    assert make.calls == 3
