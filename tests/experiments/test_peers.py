"""Peers are verified like any other backend; those that are not installed are skipped with their own reason."""

import importlib
from pathlib import Path

import pytest

from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.contract.verify import reference_outputs, verify

PEERS = Path(__file__).parents[2] / "experiments" / "peers"
PLAIN = ScanProblem(batch=2, dim=6, length=37, state=3)
PROBLEMS = (
    PLAIN.replace(layout="dim_last"),
    PLAIN.replace(direction="bidirectional", has_D=False, has_z=False, has_delta_bias=False, delta_softplus=False),
)


@pytest.mark.parametrize(
    "name", ["mambapy", "transformers", "numba", "jax", "onnxruntime", "onnxruntime_linear_attention"]
)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.key)
def test_a_peer_agrees_with_the_reference(name, problem, monkeypatch):
    monkeypatch.syspath_prepend(PEERS)
    backend = importlib.import_module(f"scanlab_peers.{name}").backend
    assert backend.name == name
    reason = backend.unavailable()
    if reason is not None:
        pytest.skip(reason)
    inputs = make_inputs(problem)
    verdict = verify(backend.build(problem), reference_outputs(problem, inputs))
    assert verdict.passed, verdict.reason


def test_a_peer_claims_no_more_than_it_has(monkeypatch):
    monkeypatch.syspath_prepend(PEERS)
    backend = importlib.import_module("scanlab_peers.mambapy").backend
    assert backend.rejects(PLAIN.replace(gradients=True)) == "it has no gradients"
    assert backend.rejects(PLAIN.replace(groups=2)) == "it has no 2 groups"
