"""A backend never run on this machine serves once it agrees with the reference, and is refused loudly where not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from scanlab.contract import registry
from scanlab.contract.problem import ScanOutput, ScanProblem, make_inputs
from scanlab.errors import RejectedError, UnavailableError
from scanlab.runtime import verification
from scanlab.runtime.decisions import Decision
from scanlab.runtime.dispatch import Dispatcher
from scanlab.runtime.profile import Profile, ProfileEntry
from scanlab.runtime.verification import disagreement, must_verify, ops_disagreement
from scanlab_kernels import pytorch
from scanlab_kernels.cpu import extension

PROBLEM = ScanProblem(batch=2, dim=6, length=20, state=4)
NEAREST = Decision("two_phase", {"threads": 1}, "nearest", "near")


@pytest.fixture(autouse=True)
def own_marks(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """A machine on which nothing was verified yet."""
    monkeypatch.setattr(verification, "cache_folder", lambda: tmp_path)


@pytest.fixture
def wrong_backend(monkeypatch: pytest.MonkeyPatch) -> list[ScanProblem]:
    """Make two_phase wrong; the problems that it is built for are returned."""
    built: list[ScanProblem] = []
    original = registry.get

    def make(problem, config):
        built.append(problem)
        right = original("two_phase").make(problem, config)

        def scan(*inputs):
            out, last_state = right(*inputs)
            return ScanOutput(out * 1.01, last_state)

        return scan

    def get(name):
        return replace(original(name), make=make) if name == "two_phase" else original(name)

    monkeypatch.setattr(registry, "get", get)
    return built


@pytest.mark.parametrize(
    ("device", "basis", "backend", "wanted"),
    [
        ("cpu", "default", "native", False),
        ("cpu", "exact", "native", False),
        ("cpu", "nearest", "native", True),
        ("cuda", "fallback", "triton", True),
        ("cuda", "named", "triton", True),
        ("cuda", "exact", "triton", False),
        ("cuda", "fallback", "reference", False),
    ],
)
def test_what_must_be_verified(device, basis, backend, wanted) -> None:
    assert must_verify(PROBLEM.replace(device=device), Decision(backend, {}, basis, "")) == wanted


def test_it_is_verified_once(monkeypatch) -> None:
    assert disagreement(PROBLEM, NEAREST) is None
    monkeypatch.setattr(verification, "verify", None)
    assert disagreement(PROBLEM, NEAREST) is None


def test_another_size_or_configuration_is_verified_anew(monkeypatch) -> None:
    assert disagreement(PROBLEM, NEAREST) is None
    monkeypatch.setattr(verification, "verify", lambda scan, expected: pytest.fail("verified"))
    for problem, decision in (
        (PROBLEM.replace(length=21), NEAREST),
        (PROBLEM, replace(NEAREST, config={"threads": 0})),
    ):
        with pytest.raises(pytest.fail.Exception, match="verified"):
            disagreement(problem, decision)


def test_a_nearest_entry_that_disagrees_is_refused_loudly_and_a_default_serves(wrong_backend, caplog) -> None:
    entry = ProfileEntry(PROBLEM.replace(length=25), "two_phase", registry.get("two_phase").source_hash, {"threads": 1})
    serve = Dispatcher(profile=Profile.empty().with_entry(entry))
    serve(*make_inputs(PROBLEM))
    assert serve.decided[PROBLEM].backend != "two_phase"
    refused, served = caplog.records
    assert refused.levelname == "ERROR"
    assert "two_phase" in refused.message
    assert "disagrees with the reference" in refused.message
    assert "disagrees with the reference" in served.message


def test_a_named_kernel_of_a_gpu_that_disagrees_is_an_error(wrong_backend, monkeypatch) -> None:
    monkeypatch.setattr("scanlab.runtime.dispatcher.must_verify", lambda problem, decision: True)
    with pytest.raises(RejectedError, match="disagrees with the reference"):
        Dispatcher("two_phase")(*make_inputs(PROBLEM))


def test_a_large_problem_is_verified_on_a_small_one() -> None:
    assert PROBLEM.small() == PROBLEM
    small = ScanProblem(batch=64, dim=1536, length=10_000, groups=3).small()
    assert (small.batch, small.length, small.groups) == (2, 100, 3)
    assert small.dim % 3 == 0
    assert small.family == ScanProblem(batch=1, dim=3, length=1, groups=3).family


def test_ops_that_agree_are_verified_once(monkeypatch) -> None:
    assert ops_disagreement(pytorch, "mine", "cpu") is None
    assert ops_disagreement(None, "mine", "cpu") is None


def test_the_native_ops_agree() -> None:
    try:
        extension.load()
    except UnavailableError as error:
        pytest.skip(str(error))
    assert ops_disagreement(torch.ops.scanlab_mixer, "native", "cpu") is None


@pytest.mark.parametrize("name", pytorch.__all__)
def test_an_op_that_disagrees_is_named(name: str) -> None:
    right = {each: getattr(pytorch, each) for each in pytorch.__all__}

    def wrong(*arguments):
        found = right[name](*arguments)
        return found * 1.001 if isinstance(found, torch.Tensor) else tuple(each * 1.001 for each in found)

    refusal = ops_disagreement(SimpleNamespace(**right | {name: wrong}), "mine", "cpu")
    assert refusal is not None
    assert refusal.startswith(f"mine's {name} disagrees with PyTorch on cpu")
