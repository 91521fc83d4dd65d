"""The contract class catches what it is there to catch: each broken backend fails the test that is about its fault."""

import dataclasses

import pytest
import torch

from scanlab.contract.backend import Capabilities
from scanlab.contract.problem import ScanOutput
from scanlab.contract.space import Space, Tunable
from scanlab.testing import BackendContract
from scanlab_kernels.selective_scan import bidirectional, reference


def contract(make, **changes):
    """The contract of a backend that differs from `reference` in `make` and in what is named."""

    class Contract(BackendContract):
        backend = dataclasses.replace(reference.backend, name="broken", make=make, **changes)

    return Contract()


def wrapped(change):
    """A `make` whose scan is the reference scan with `change` around it."""

    def make(problem, config):
        scan = reference.make(problem, config)
        return lambda *inputs: change(scan, *inputs)

    return make


def off_by_little(scan, *inputs):
    out, last_state = scan(*inputs)
    return ScanOutput(out * (1 + 1e-4), last_state)


def other_dtype(scan, *inputs):
    out, last_state = scan(*inputs)
    return ScanOutput(out.double(), last_state)


def without_a_gradient(scan, *inputs):
    return scan(*(each.with_tensors(A=each.A.detach()) for each in inputs))


def writes_its_input(scan, *inputs):
    result = scan(*inputs)
    inputs[0].u.detach().add_(1.0)
    return result


def reads_storage(scan, *inputs):
    (given,) = inputs
    return scan(given.with_tensors(u=given.u.as_strided(given.u.shape, given.u.new_empty(given.u.shape).stride())))


def adds_to_uninitialised_memory(scan, *inputs):
    out, last_state = scan(*inputs)
    return ScanOutput(torch.empty_like(out).clamp_(-1e-12, 1e-12) + out, last_state)


def leaves_other_threads(scan, *inputs):
    torch.set_num_threads(2)
    return scan(*inputs)


def one_buffer(problem, config):
    scan = reference.make(problem, config)
    out = torch.empty(problem.batch, problem.dim, problem.length)

    def into_buffer(*inputs):
        result = scan(*inputs)
        out.copy_(result.out.detach())
        return ScanOutput(out, result.last_state)

    return into_buffer


def counting(problem, config):
    scan, calls = reference.make(problem, config), []

    def drifting(*inputs):
        calls.append(None)
        result = scan(*inputs)
        return ScanOutput(result.out * (1 + 1e-6 * len(calls)), result.last_state)

    return drifting


def wrong_in_tiles_of_two(problem, config):
    make = wrapped(off_by_little) if config["tile"] == 2 else reference.make
    return make(problem, {"threads": 1})


@pytest.fixture
def threads_kept():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("change", "gradients", "says"),
    [
        (off_by_little, False, "out is off by"),
        (other_dtype, False, "out is torch.float64"),
        (without_a_gradient, True, "grad_A is off by"),
        (writes_its_input, False, "changed its input u"),
    ],
)
def test_the_comparison_catches(change, gradients, says):
    broken = contract(wrapped(change))
    with pytest.raises(AssertionError, match=says):
        broken.test_agrees_with_the_reference(broken.plain().replace(gradients=gradients))


def test_a_wrong_value_of_a_tunable_is_caught():
    broken = contract(wrong_in_tiles_of_two, space=Space((Tunable("tile", (1, 2), default=1),)))
    assert list(broken.configs()) == [{"tile": 1}, {"tile": 2}]
    broken.test_every_value_of_every_tunable_agrees({"tile": 1})
    with pytest.raises(AssertionError, match="out is off by"):
        broken.test_every_value_of_every_tunable_agrees({"tile": 2})


def test_ignored_strides_are_caught():
    broken = contract(wrapped(reads_storage))
    broken.test_agrees_with_the_reference(broken.plain())
    with pytest.raises(AssertionError, match="out"):
        broken.test_inputs_of_any_stride(broken.plain())


def test_uninitialised_memory_is_caught_and_the_setting_restored():
    broken = contract(wrapped(adds_to_uninitialised_memory))
    with pytest.raises(AssertionError, match="out is not finite"):
        broken.test_reads_no_uninitialised_memory(broken.plain())
    assert not torch.are_deterministic_algorithms_enabled()


def test_threads_left_changed_are_caught(threads_kept):
    broken = contract(wrapped(leaves_other_threads))
    with pytest.raises(AssertionError, match="a call changed the threads"):
        broken.test_restores_the_threads_of_torch(broken.plain())


@pytest.mark.parametrize(("make", "says"), [(one_buffer, "a later call wrote"), (counting, "gave other outputs")])
def test_repeated_calls_are_held_to_their_word(make, says):
    with pytest.raises(AssertionError, match=says):
        contract(make).test_repeated_calls_are_equal_and_fresh()


def test_what_is_not_claimed_is_refused_and_what_is_refused_is_not_claimed():
    narrow = contract(reference.make, capabilities=Capabilities(dtypes=("float64",), directions=("reverse",)))
    claimed = narrow.claimed()
    assert {(problem.dtype, problem.direction, problem.gradients) for problem in claimed} == {
        ("float64", "reverse", False)
    }
    assert not any(problem.complex_A or problem.groups > 1 or problem.has_initial_state for problem in claimed)
    narrow.test_rejects_with_a_reason_and_computes_nothing()


def test_a_backend_that_computes_what_it_should_reject_is_caught():
    class Eager(type(reference.backend)):
        def rejects(self, problem):
            return "no" if problem.complex_A else None

        def build(self, problem, config=None):
            return self.make(problem, self.space.defaults)

    fields = {field.name: getattr(reference.backend, field.name) for field in dataclasses.fields(reference.backend)}

    class Contract(BackendContract):
        backend = Eager(**fields)

    with pytest.raises(AssertionError, match="make was called"):
        Contract().test_rejects_with_a_reason_and_computes_nothing()


def test_an_unavailable_backend_is_skipped_with_its_reason():
    absent = contract(reference.make, unavailable=lambda: "it needs a wheel; fit one.")
    with pytest.raises(pytest.skip.Exception, match="it needs a wheel"):
        absent.test_agrees_with_the_reference(absent.plain())
    absent.test_says_why_where_it_cannot_run()


def test_directed_reverse_of_a_shifted_scan_is_caught():
    def make(problem, config):
        def forward(inputs):
            result = reference.scan(inputs, problem)
            return ScanOutput(result.out.roll(1, -1), result.last_state)

        return bidirectional.directed(forward, problem)

    shifted = contract(make)
    for direction in ("forward", "reverse", "bidirectional"):
        with pytest.raises(AssertionError, match="out is off by"):
            shifted.test_agrees_with_the_reference(shifted.plain().replace(direction=direction))


def scan_with(change):
    """Return a `make` whose scan gives what `change(problem, result, *inputs)` makes of the right result."""

    def make(problem, config):
        scan = reference.make(problem, config)
        return lambda *inputs: change(problem, scan(*inputs), *inputs)

    return make


def scaled(result, when):
    return ScanOutput(result.out * 1.1, result.last_state) if when else result


def wrong_past_the_first_tile(problem, result, *inputs):
    factor = torch.ones(problem.dim, 1, dtype=result.out.dtype)
    factor[64:] = 1.01
    return ScanOutput(result.out * factor, result.last_state)


def ignores_a_gradient(problem, result, *inputs):
    D = inputs[0].D
    if D is None or not problem.gradients:
        return result
    return ScanOutput(result.out + (D.detach() - D)[:, None].to(result.out.dtype), result.last_state)


FAULTS = {
    "without z": lambda problem, result, *inputs: scaled(result, not problem.has_z),
    "without D": lambda problem, result, *inputs: scaled(result, not problem.has_D),
    "past the first tile": wrong_past_the_first_tile,
    "at odd lengths": lambda problem, result, *inputs: scaled(result, problem.length % 2 == 1),
    "at even lengths": lambda problem, result, *inputs: scaled(result, problem.length % 2 == 0),
    "in bfloat16 alone": lambda problem, result, *inputs: scaled(result, problem.dtype == "bfloat16"),
    "gradient of D": ignores_a_gradient,
}


@pytest.mark.parametrize(
    ("fault", "differentiable"),
    [
        *((fault, True) for fault in FAULTS),
        *((fault, False) for fault in FAULTS if fault != "gradient of D"),  # there is none to be wrong
    ],
)
def test_planted_faults_are_caught_by_some_corner(fault, differentiable):
    dtypes = ("float32", "bfloat16")
    broken = contract(scan_with(FAULTS[fault]), capabilities=Capabilities(dtypes=dtypes, gradients=differentiable))
    caught = []
    for problem in broken.problems():
        if broken.backend.rejects(problem) is None:
            try:
                broken.test_agrees_with_the_reference(problem)
            except AssertionError:
                caught.append(problem)
    assert caught
