"""No timing without proof: a configuration becomes a scan that may be timed, or the reason why not."""

from __future__ import annotations

import pytest

from helpers.fakes import TINY, crashing, fake, sleepy, wrong
from scanlab.bench.prove import Failure, Proven, Setting, prove
from scanlab.contract import registry
from scanlab.contract.backend import Capabilities
from scanlab.contract.problem import ScanOutput, make_inputs
from scanlab.errors import ConfigError


@pytest.fixture(scope="module")
def setting():
    return Setting.of(TINY, make_inputs(TINY), "made", seed=0)


def test_a_right_scan_may_be_timed(setting):
    proven = prove(registry.get("reference"), {}, setting)
    assert isinstance(proven, Proven)
    assert proven.verdict.passed
    assert proven.config == registry.get("reference").space.defaults
    assert proven.build_ms > 0
    assert proven.first_call_ms > 0


def test_building_and_the_first_call_are_told_apart(setting):
    proven = prove(sleepy(delays_ms=(30.0,)), {}, setting)
    assert proven.build_ms < 30 <= proven.first_call_ms


def test_a_wrong_one_has_a_verdict_and_its_errors(setting):
    failure = prove(wrong(), {"scale": 2.0}, setting)
    assert failure.state == "wrong"
    assert failure.verdict.errors["out"] == pytest.approx(1.0, rel=1e-3)
    assert "out is off" in failure.reason


def test_one_that_is_right_on_the_given_inputs_alone_is_wrong(setting):
    """It has learnt the answer to the inputs that it is timed on."""
    given = setting.turns[0][0]

    def around(scan, config):
        answer = scan(given)
        return lambda *inputs: ScanOutput(*(tensor.clone() for tensor in answer))

    failure = prove(fake("learnt", around), {}, setting)
    assert isinstance(failure, Failure)
    assert failure.state == "wrong"


@pytest.mark.parametrize("at_call", [0, 1])
def test_a_crash_is_a_reason(setting, at_call):
    failure = prove(crashing(at_call), {}, setting)
    assert failure.state == "crashed"
    assert failure.reason == "RuntimeError: the kernel fell over"


def test_a_problem_that_the_backend_does_not_solve_is_rejected(setting):
    reference = registry.get("reference")
    choosy = fake("choosy", lambda scan, config: scan)
    choosy = type(choosy)(**{**vars(choosy), "capabilities": Capabilities(dtypes=("float64",))})
    assert reference.rejects(setting.problem) is None
    failure = prove(choosy, {}, setting)
    assert failure.state == "rejected"
    assert "dtype float32" in failure.reason


def test_an_illegal_configuration_is_the_callers_error(setting):
    with pytest.raises(ConfigError, match="delay_ms=7"):
        prove(sleepy(), {"delay_ms": 7.0}, setting)


def test_an_interruption_is_no_crash(setting):
    def around(scan, config):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prove(fake("stopped", around), {}, setting)


def test_what_is_asked_of_the_gradients_is_proved_too():
    problem = TINY.replace(gradients=True)
    setting = Setting.of(problem, make_inputs(problem), "made", seed=0)

    def around(scan, config):
        def detached(*inputs):
            out, last_state = scan(*inputs)
            # The value is right and the gradient is half of what it should be.
            return ScanOutput(out / 2 + (out / 2).detach(), last_state)

        return detached

    failure = prove(fake("halved", around), {}, setting)
    assert failure.state == "wrong"
    assert "grad_u" in failure.reason
