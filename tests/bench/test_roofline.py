"""The machine's ceilings: times below the physical floor are refused, and honest ones never."""

from __future__ import annotations

import random

import pytest
import torch

from helpers.fakes import fake
from scanlab.bench.prove import Setting, prove
from scanlab.bench.roofline import Ceilings, ceilings_here
from scanlab.bench.timing import take_round
from scanlab.contract import registry
from scanlab.contract.problem import ScanOutput, ScanProblem, make_inputs

CEILINGS = Ceilings({"float32": 4e9, "float64": 2e9}, exps_per_s=1e9, bytes_per_s=1e9, wake_s=5e-6)
PROBLEM = ScanProblem(batch=1, dim=100, length=100, state=10)  # 1e5 state updates


def test_the_floor_is_the_arithmetic_that_nobody_can_leave_out():
    # 4e5 operations at 4e9 a second are 100 us, half of that with the margin.
    assert CEILINGS.floor_s(PROBLEM, threads=1) == pytest.approx(50e-6)
    assert CEILINGS.floor_s(PROBLEM, threads=2) == pytest.approx(25e-6)
    assert CEILINGS.floor_s(PROBLEM.replace(dtype="float64"), threads=1) == pytest.approx(100e-6)


def test_attainable_is_the_longer_of_arithmetic_and_traffic():
    assert CEILINGS.attainable_s(PROBLEM, threads=1) == pytest.approx(12 * 1e5 / 4e9)
    slow_memory = Ceilings({"float32": 4e12, "float64": 2e12}, 1e9, 1e6, None)
    assert slow_memory.attainable_s(PROBLEM, threads=1) == pytest.approx(PROBLEM.min_bytes / 1e6)
    with_gradients = CEILINGS.attainable_s(PROBLEM.replace(gradients=True), threads=1)
    assert with_gradients == 3 * CEILINGS.attainable_s(PROBLEM, threads=1)


def test_a_time_below_the_floor_is_refused_with_the_figures():
    refusal = CEILINGS.refuses(PROBLEM, threads=1, measured_s=10e-6)
    assert "0.01 ms is less than the 0.05 ms" in refusal
    assert "100000 state updates" in refusal
    assert CEILINGS.refuses(PROBLEM, threads=1, measured_s=60e-6) is None


def test_the_ceilings_of_this_machine_bound_what_torch_does():
    here = ceilings_here()
    assert here.operations_per_s["float32"] > 1e8
    assert here.exps_per_s > 1e6
    assert here.bytes_per_s > 1e7
    assert (here.wake_s is None) == (torch.get_num_threads() == 1)
    problem = ScanProblem(batch=1, dim=64, length=64)
    setting = Setting.of(problem, make_inputs(problem), "made", seed=0)
    proven = prove(registry.get("reference"), {"threads": 1}, setting)
    arm = proven.arm(setting)
    assert here.refuses(problem, 1, arm.cost_s / (arm.calls * arm.samples)) is None
    assert setting.attainable_ms({"threads": 1}) > 0


def test_a_scan_that_answers_from_memory_is_wrong_however_right_its_answers():
    """It remembers every input it has seen: right on all of them, and faster than any arithmetic."""
    problem = ScanProblem(batch=1, dim=256, length=512)
    setting = Setting.of(problem, make_inputs(problem), "made", seed=0)

    def around(scan, config):
        known: dict[int, ScanOutput] = {}

        def remember(*inputs):
            key = inputs[0].u.data_ptr()
            if key not in known:
                known[key] = scan(*inputs)
            return known[key]

        return remember

    backend = fake("remembering", around)
    proven = prove(backend, {}, setting)
    for _ in setting.turns:
        proven.call()
    anchor = prove(registry.get("reference"), {"threads": 1}, setting)
    arm, anchor_arm = proven.arm(setting), anchor.arm(setting)
    blocks = take_round([arm], anchor_arm, random.Random(0))
    measurement = proven.measurement(arm, anchor, anchor_arm, blocks, peak=None)
    trial = setting.trial("search", backend, {}, 0.0, measurement, proven.verdict)
    assert trial.state == "wrong"
    assert trial.measurement is None
    assert "did not compute the scan" in trial.reason
