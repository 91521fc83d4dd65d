"""Samples are taken as promised: long enough, interleaved with one baseline, on copies of the inputs in turn."""

from __future__ import annotations

import gc
import random
import time
from typing import Any

import pytest
import torch

from helpers.fakes import TINY
from scanlab.bench import timing as measure
from scanlab.bench.timing import TimedCall, calibrate, call_of, input_copies, peak_bytes, take_round
from scanlab.contract import registry
from scanlab.contract.problem import ScanInputs, ScanOutput, make_inputs

MS = 1_000_000


def slept(seconds: float) -> TimedCall:
    return calibrate(lambda: time.sleep(seconds), "cpu", 1)


@pytest.mark.timing
def test_the_pilot_makes_samples_long_enough():
    assert slept(0.005).calls == 1
    short = slept(1e-4)
    assert short.calls * 1e-4 <= 20 * measure.SAMPLE_S
    assert short.calls > 1


def test_a_round_interleaves_every_candidate_with_one_baseline():
    timed, baseline = [slept(1e-4), slept(2e-3)], slept(1e-3)
    blocks = take_round(timed, baseline, random.Random(0), number=7, process=2)
    assert [len(each.candidate_ns) for each in blocks] == [each.samples for each in timed]
    for one, each in zip(timed, blocks, strict=True):
        assert each.baseline_ns == blocks[0].baseline_ns
        assert len(each.baseline_ns) == baseline.samples
        assert each.order.count("c") == one.samples
        assert each.order.count("b") == baseline.samples
        assert len(each.order) == sum(each.samples for each in (*timed, baseline))
        assert (each.round, each.process) == (7, 2)
    assert all(each.log_ratio > 0 for each in blocks[1:])


def test_the_order_is_drawn_anew_for_every_round():
    timed, baseline, rng = [slept(1e-4)], slept(1e-4), random.Random(0)
    assert len({take_round(timed, baseline, rng)[0].order for _ in range(8)}) > 1


def test_garbage_collection_is_off_while_samples_are_taken_and_on_again_after():
    seen = []
    one = calibrate(lambda: seen.append(gc.isenabled()), "cpu", 1)
    seen.clear()
    take_round([one], one, random.Random(0))
    assert set(seen) == {False}
    assert gc.isenabled()


def test_threads_are_those_of_the_configuration_and_restored():
    seen = []
    before = torch.get_num_threads()
    one = calibrate(lambda: seen.append(torch.get_num_threads()), "cpu", before + 1)
    other = calibrate(lambda: None, "cpu", 1)
    take_round([one], other, random.Random(0))
    peak_bytes(one.call, one.device, one.threads)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_input_copies_are_equal_elsewhere_in_memory_with_the_same_strides():
    both = torch.randn(1, 12, 5)
    (inputs,) = make_inputs(TINY.replace(length=5, dim=6))
    viewed = inputs.with_tensors(u=both[:, :6], z=both[:, 6:])
    copies = input_copies((viewed,))
    assert len(copies) > 1
    for (copy,) in copies[1:]:
        for name, tensor in viewed.tensors().items():
            copied = getattr(copy, name)
            assert torch.equal(copied, tensor)
            assert copied.stride() == tensor.stride()
            assert copied.data_ptr() != tensor.data_ptr()


def test_large_inputs_are_not_copied(monkeypatch):
    monkeypatch.setattr(measure, "MAX_COPIES_BYTES", 16)
    assert len(input_copies(make_inputs(TINY))) == 1


def test_calls_take_the_inputs_in_turn_without_gradients():
    seen = []

    def scan(*inputs: ScanInputs) -> ScanOutput:
        seen.append((inputs[0].u.data_ptr(), torch.is_grad_enabled()))
        return ScanOutput(inputs[0].u, inputs[0].A)

    copies = input_copies(make_inputs(TINY))
    call = call_of(scan, TINY, copies)
    for _ in range(2 * len(copies)):
        call()
    assert [pointer for pointer, _ in seen] == 2 * [inputs[0].u.data_ptr() for inputs in copies]
    assert not any(grad for _, grad in seen)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_with_gradients_a_call_is_forward_and_backward(direction):
    problem = TINY.replace(gradients=True, direction=direction)
    inputs = make_inputs(problem)
    scan = registry.get("reference").build(problem, {"threads": 1})
    gradients: Any = call_of(scan, problem, (inputs,))()
    leaves = [
        each.with_tensors(**{n: t.clone().requires_grad_() for n, t in each.tensors().items()}) for each in inputs
    ]
    scan(*leaves).out.sum().backward()
    expected = [tensor.grad for each in leaves for tensor in each.tensors().values()]
    assert len(gradients) == len(expected)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_peak_memory_is_what_one_call_takes():
    size = 64 << 20
    took = peak_bytes(lambda: torch.ones(size // 4), "cpu", threads=1)
    if took is None:
        pytest.skip("this system does not tell the resident set")
    assert size <= took + (1 << 20)
    assert took < 1.2 * size


def test_peak_memory_counts_what_was_kept_for_the_next_call():
    problem = TINY.replace(length=1 << 15, dim=256, state=1)
    scan, inputs = registry.get("native").build(problem), make_inputs(problem)[0]
    took, size = peak_bytes(lambda: scan(inputs), "cpu", threads=1), inputs.u.nbytes
    if took is None:
        pytest.skip("this system does not tell the resident set")
    assert size <= took + (1 << 20)
    assert took < 1.5 * size


def test_peak_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    def refuse(self, text):
        raise PermissionError

    monkeypatch.setattr(measure.Path, "write_text", refuse)
    assert peak_bytes(lambda: None, "cpu", threads=1) is None
