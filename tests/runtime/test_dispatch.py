"""Choice of the backend that serves, its explanation, and the upstream semantics of the drop-in."""

from __future__ import annotations

import doctest
import logging
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

import scanlab
from scanlab import settings
from scanlab.contract import registry
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem, make_inputs
from scanlab.errors import ConfigError, ProblemError, UnavailableError, UnknownBackendError
from scanlab.runtime import decisions as deciding
from scanlab.runtime import dispatch
from scanlab.runtime.decisions import decide, decisions
from scanlab.runtime.dispatch import Dispatcher, selective_scan_fn
from scanlab.runtime.profile import Profile, ProfileEntry

PROBLEM = ScanProblem(batch=2, dim=6, length=20, state=4)


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No profile, no environment, and no dispatcher left over from another test."""
    for name in ("SCANLAB_BACKEND", "SCANLAB_STRICT", "SCANLAB_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    dispatch.clear()
    yield
    dispatch.clear()


def profile_with(problem: ScanProblem, backend: str = "two_phase", source_hash: str | None = None) -> Profile:
    found = source_hash or registry.get(backend).source_hash
    return Profile.empty().with_entry(ProfileEntry(problem, backend, found, {"threads": 1}))


def test_the_exact_entry_serves_in_silence(caplog):
    serve = Dispatcher(profile=profile_with(PROBLEM))
    serve(*make_inputs(PROBLEM))
    (decision,) = serve.decided.values()
    assert (decision.backend, decision.config, decision.basis) == ("two_phase", {"threads": 1}, "exact")
    assert not caplog.records


def test_the_nearest_entry_serves_and_says_so_once(caplog):
    serve = Dispatcher(profile=profile_with(PROBLEM.replace(length=25)))
    for _ in range(3):
        serve(*make_inputs(PROBLEM))
    assert serve.decided[PROBLEM].basis == "nearest"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "two_phase" in record.message
    assert "length=25" in record.message


def test_without_a_profile_what_was_measured_elsewhere_serves_and_says_why(caplog):
    serve = Dispatcher()
    serve(*make_inputs(PROBLEM))
    assert serve.decided[PROBLEM].basis == "default"
    assert "times as fast as the reference loop on batch=" in caplog.records[0].message
    assert f"run `scanlab tune --problem {PROBLEM.key}`" in caplog.records[0].message


def test_where_nothing_alike_was_measured_the_fallback_serves(monkeypatch):
    monkeypatch.setattr(deciding, "most_similar", lambda problem: iter(()))
    assert decide(PROBLEM, None).basis == "fallback"


def test_a_changed_source_is_said(caplog):
    Dispatcher(profile=profile_with(PROBLEM, source_hash="0" * 16))(*make_inputs(PROBLEM))
    assert "the source of two_phase changed since it was tuned" in caplog.records[0].message


@pytest.mark.parametrize(
    ("backend", "config", "reason"),
    [("uninstalled", {}, "no backend is called 'uninstalled'"), ("two_phase", {"threads": 4096}, "threads=4096")],
)
def test_an_entry_that_is_no_longer_legal_or_known_is_passed_over_and_that_is_said(backend, config, reason):
    profile = Profile.empty().with_entry(ProfileEntry(PROBLEM, backend, "0", config))
    decision = decide(PROBLEM, profile)
    assert decision.basis == "default"
    assert decision.reason.startswith(f"the choice for {PROBLEM.key} cannot serve: ")
    assert reason in decision.reason
    beside = profile.with_entry(ProfileEntry(PROBLEM.replace(length=25), "two_phase", "0", {"threads": 1}))
    assert decide(PROBLEM, beside).basis == "nearest"
    assert reason in decide(PROBLEM, beside).reason


def test_every_problem_of_the_contract_has_a_fallback():
    hard = PROBLEM.replace(complex_A=True, groups=2, dtype="float64", gradients=True, direction="bidirectional")
    assert "reference" in [decision.backend for decision in decisions(hard, None)]


def test_where_nothing_serves_every_reason_is_given():
    with pytest.raises(UnavailableError, match="reference: state 300: it takes at most 256"):
        decide(PROBLEM.replace(state=300), None)


def test_strict_makes_a_fallback_an_error(monkeypatch):
    monkeypatch.setenv("SCANLAB_STRICT", "1")
    with pytest.raises(UnavailableError, match="SCANLAB_STRICT=1 makes this an error"):
        Dispatcher()(*make_inputs(PROBLEM))
    Dispatcher(profile=profile_with(PROBLEM))(*make_inputs(PROBLEM))


def test_the_environment_and_the_argument_name_a_backend(monkeypatch):
    inputs = make_inputs(PROBLEM)[0]
    monkeypatch.setenv("SCANLAB_BACKEND", "two_phase:threads=1")
    selective_scan_fn(*inputs[:-1], delta_softplus=True)
    assert "two_phase" in scanlab.explain()
    selective_scan_fn(*inputs[:-1], delta_softplus=True, backend="reference")
    assert dispatch.dispatcher("reference").decided[PROBLEM].backend == "reference"
    with pytest.raises(UnknownBackendError, match="no backend is called 'nativ'"):
        selective_scan_fn(*inputs[:-1], backend="nativ")
    with pytest.raises(ConfigError, match="implements linear, not selective_scan"):
        selective_scan_fn(*inputs[:-1], backend="linear_torch")
    with pytest.raises(ConfigError, match="threads=999"):
        selective_scan_fn(*inputs[:-1], backend="reference:threads=999")


def test_explain_before_anything_was_served():
    assert "not served" in scanlab.explain()


def upstream_arguments(problem: ScanProblem) -> dict:
    return {name: tensor for name, tensor in make_inputs(problem)[0].tensors().items()}


@pytest.mark.parametrize("softplus", [False, True])
def test_the_drop_in_has_the_upstream_signature(softplus):
    problem = PROBLEM.replace(delta_softplus=softplus)
    inputs = make_inputs(problem)[0]
    out = selective_scan_fn(*inputs[:-1], softplus)
    same, last = selective_scan_fn(*inputs[:-1], delta_softplus=softplus, return_last_state=True)
    expected = registry.get("reference").build(problem)(inputs)
    torch.testing.assert_close(out, expected.out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(same, expected.out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, expected.last_state, rtol=1e-5, atol=1e-5)


def test_the_drop_in_differentiates_what_requires_it():
    inputs = make_inputs(PROBLEM)[0]
    u = inputs.u.clone().requires_grad_()
    selective_scan_fn(u, *inputs[1:-1], delta_softplus=True).sum().backward()
    assert u.grad is not None
    assert u.grad.abs().sum() > 0
    with torch.no_grad():
        assert not selective_scan_fn(u, *inputs[1:-1], delta_softplus=True).requires_grad


def test_mixed_dtypes_are_promoted_and_the_output_has_the_dtype_of_u():
    arguments = upstream_arguments(PROBLEM)
    half = arguments | {name: arguments[name].bfloat16() for name in ("u", "B", "C")}
    out, last = selective_scan_fn(**half, delta_softplus=True, return_last_state=True)
    assert (out.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    exact = {name: tensor.double() for name, tensor in half.items()}
    expected = selective_scan_fn(**exact, delta_softplus=True)
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)
    single_A = exact | {"A": exact["A"].float()}
    torch.testing.assert_close(selective_scan_fn(**single_A, delta_softplus=True), expected, rtol=1e-9, atol=1e-9)


def test_the_example_of_the_drop_in_runs():
    (example,) = doctest.DocTestFinder().find(selective_scan_fn, globs=globals())
    assert doctest.DocTestRunner().run(example) == (0, 3)


def test_tensors_that_do_not_fit_raise_before_anything_is_built():
    arguments = upstream_arguments(PROBLEM)
    with pytest.raises(ProblemError, match=r"delta is float32 \(2, 6, 19\)"):
        selective_scan_fn(**arguments | {"delta": arguments["delta"][..., 1:]}, delta_softplus=True)
    with pytest.raises(ProblemError, match=r"u is float32 \(6,\): must be \(batch, dim, length\)"):
        selective_scan_fn(**arguments | {"u": arguments["u"][0, :, 0]}, delta_softplus=True)


@pytest.mark.parametrize("backend", ["two_phase", "chunked", "native"])
def test_sparse_tensors_are_refused_after_dense_ones_too(backend):
    (inputs,) = make_inputs(ScanProblem(batch=1, dim=4, length=8))
    arguments: dict[str, Any] = dict(zip(("u", "delta", "A", "B", "C", "D"), inputs, strict=False))
    selective_scan_fn(**arguments, backend=backend)
    for name in ("D", "A"):
        with pytest.raises((ValueError, NotImplementedError)):
            selective_scan_fn(**arguments | {name: arguments[name].to_sparse()}, backend=backend)


def test_one_dispatcher_serves_many_threads():
    serve = Dispatcher("two_phase")
    inputs = [make_inputs(PROBLEM.replace(length=length)) for length in (5, 6, 7, 5, 6, 7)]
    results: dict[int, torch.Tensor] = {}

    def work(index: int, given: tuple[ScanInputs, ...]) -> None:
        results[index] = serve(*given).out

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(inputs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(3):
        assert torch.equal(results[index], results[index + 3])


def test_what_is_kept_does_not_grow_with_the_lengths(monkeypatch, caplog):
    monkeypatch.setattr(settings, "MAX_KEPT_SCANS", 16)
    monkeypatch.setattr(settings, "MAX_KEPT_WARNINGS", 4)
    built = []
    backend = replace(registry.get("reference"), make=lambda problem, config: built.append(problem) or first_of)
    monkeypatch.setattr(registry, "get", lambda name: backend)
    serve = Dispatcher()
    whole = make_inputs(PROBLEM.replace(length=3000))[0]
    for length in range(1, 3000):
        serve(ScanInputs(*(part(tensor, length) for tensor in whole)))
    assert len(built) == 2999
    decided: Any = serve.decided
    assert [problem.length for problem in decided] == list(range(2984, 3000))
    serve(ScanInputs(*(part(tensor, 2999) for tensor in whole)))
    assert len(built) == 2999
    serve(ScanInputs(*(part(tensor, 5) for tensor in whole)))
    assert len(built) == 3000


def part(tensor, length):
    return tensor[..., :length] if tensor is not None and tensor.dim() == 3 else tensor


def first_of(inputs):
    return ScanOutput(inputs.u, inputs.A)
