"""Roofline of the machine: times below the physical floor are refused, and honest ones never."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from helpers.fakes import fake
from scanlab.bench.context import BenchmarkContext, Candidate
from scanlab.bench.roofline import Roofline, RooflineMeter, roofline_here
from scanlab.bench.trials import Baseline, trial_of
from scanlab.bench.worker import LocalWorker
from scanlab.contract import registry
from scanlab.contract.problem import ScanOutput, ScanProblem, make_inputs

ROOFLINE = Roofline({"float32": 4e9, "float64": 2e9}, exps_per_s=1e9, bytes_per_s=1e9)
PROBLEM = ScanProblem(batch=1, dim=100, length=100, state=10)  # 1e5 state updates


def test_the_floor_is_the_arithmetic_that_nobody_can_leave_out():
    # 4e5 operations at 4e9 a second are 100 us, half of that with the margin.
    assert ROOFLINE.min_time_s(PROBLEM, threads=1) == pytest.approx(50e-6)
    assert ROOFLINE.min_time_s(PROBLEM, threads=2) == pytest.approx(25e-6)
    assert ROOFLINE.min_time_s(PROBLEM.replace(dtype="float64"), threads=1) == pytest.approx(100e-6)


def test_attainable_is_the_longer_of_arithmetic_and_traffic():
    assert ROOFLINE.attainable_s(PROBLEM, threads=1) == pytest.approx(12 * 1e5 / 4e9)
    slow_memory = Roofline({"float32": 4e12, "float64": 2e12}, 1e9, 1e6)
    assert slow_memory.attainable_s(PROBLEM, threads=1) == pytest.approx(PROBLEM.min_bytes / 1e6)
    with_gradients = ROOFLINE.attainable_s(PROBLEM.replace(gradients=True), threads=1)
    assert with_gradients == 3 * ROOFLINE.attainable_s(PROBLEM, threads=1)


def test_a_time_below_the_floor_is_refused_with_the_figures():
    refusal = ROOFLINE.refuses(PROBLEM, threads=1, measured_s=10e-6)
    assert "0.01 ms is less than the 0.05 ms" in refusal
    assert PROBLEM.key in refusal
    assert ROOFLINE.refuses(PROBLEM, threads=1, measured_s=60e-6) is None


def test_the_roofline_of_this_machine_bound_what_torch_does():
    here = roofline_here()
    assert here.operations_per_s["float32"] > 1e8
    assert here.exps_per_s > 1e6
    assert here.bytes_per_s > 1e7
    problem = ScanProblem(batch=1, dim=64, length=64)
    context = BenchmarkContext.of(problem, make_inputs(problem), "made", seed=0)
    reference = Candidate(registry.get("reference"), {"threads": 1})
    evaluation = LocalWorker(context).prepare(reference)
    assert here.refuses(problem, 1, evaluation.call_ms / 1e3) is None
    assert here.attainable_s(problem, 1) > 0


def test_a_roofline_that_other_work_disturbed_is_measured_again_and_else_unknown():
    passes = iter([replace(ROOFLINE, bytes_per_s=2e9, disturbed="others"), ROOFLINE, replace(ROOFLINE, exps_per_s=9e9)])
    meter = RooflineMeter(lambda: next(passes))
    assert meter().disturbed == "others"
    assert meter() == meter() == replace(ROOFLINE, bytes_per_s=2e9)
    count = itertools.count(1)
    busy = RooflineMeter(lambda: replace(ROOFLINE, bytes_per_s=float(next(count)), disturbed="others"))
    assert [busy().bytes_per_s for _ in range(6)] == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0]


def test_the_share_of_a_disturbed_roofline_is_unknown(monkeypatch):
    context = BenchmarkContext.of(PROBLEM, make_inputs(PROBLEM), "made", seed=0)
    candidate = Candidate(registry.get("reference"), {"threads": 1})
    monkeypatch.setattr("scanlab.bench.context.roofline_here", lambda: ROOFLINE)
    assert context.attainable_ms(candidate) == pytest.approx(0.3)
    monkeypatch.setattr("scanlab.bench.context.roofline_here", lambda: replace(ROOFLINE, disturbed="others"))
    assert context.attainable_ms(candidate) is None


def test_a_scan_that_answers_from_memory_is_wrong_however_right_its_answers():
    """It remembers every input it has seen: right on all of them, and faster than any arithmetic."""
    problem = ScanProblem(batch=1, dim=256, length=1024)
    context = BenchmarkContext.of(problem, make_inputs(problem), "made", seed=0)
    worker = LocalWorker(context)

    def around(scan, config):
        known: dict[int, ScanOutput] = {}

        def remember(*inputs):
            key = inputs[0].u.data_ptr()
            if key not in known:
                known[key] = scan(*inputs)
            return known[key]

        return remember

    candidate = Candidate(fake("remembering", around), {})
    baseline = Candidate(registry.get("reference"), {"threads": 1})
    evaluation, beside = worker.prepare(candidate), worker.prepare(baseline)
    # After a few rounds it has seen every copy of the inputs, and answers at once, whatever else runs here.
    rounds = [worker.take_round([candidate], baseline, number)[0] for number in range(12)]
    block = min(rounds, key=lambda block: max(block.candidate_ns))
    blocks = [replace(block, disturbed=None)]
    measurement = Baseline(baseline, beside.calls).measurement(evaluation, blocks, None)
    trial = trial_of(context, "search", candidate, 0.0, 1.0, evaluation, measurement)
    assert trial.state == "wrong"
    assert trial.measurement is None
    assert "did not compute the problem" in trial.reason
