"""Memory is bounded by the chunk, in the backward pass too; and where a chunk ends does not show."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from scanlab.contract.problem import ScanInputs, ScanProblem, make_inputs
from scanlab_kernels.selective_scan import associative, chunked, chunked_scan, recurrence, two_phase

PROBLEM = ScanProblem(batch=1, dim=48, length=200, state=64)


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors made meanwhile that were alive at once."""

    def __init__(self):
        super().__init__()
        self.alive = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.alive = {key: (storage, size) for key, (storage, size) in self.alive.items() if not storage.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def peak_bytes(backend, problem):
    (inputs,) = make_inputs(problem)
    leaves = ScanInputs(**{name: each.requires_grad_(problem.gradients) for name, each in inputs.tensors().items()})
    scan = backend.build(problem, {"chunk": 16} if backend.space.tunables[0].name == "chunk" else {})
    with LiveBytes() as live:
        out = scan(leaves).out
        if problem.gradients:
            torch.autograd.grad(out.sum(), list(leaves.tensors().values()))
    return live.peak


def growth(backend, problem):
    """Bytes that a longer scan needs beyond a shorter one, as a share of the states of the added steps."""
    longer = problem.replace(length=2 * problem.length)
    item = 8 if problem.complex_A else 4
    return (peak_bytes(backend, longer) - peak_bytes(backend, problem)) / (problem.state_updates * item)


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"constant_B": True, "constant_C": True}, {"complex_A": True}])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("backend", [chunked.backend, associative.backend], ids=lambda backend: backend.name)
def test_the_states_of_all_steps_never_exist_at_once(backend, options, gradients):
    problem = PROBLEM.replace(gradients=gradients, **options)
    assert growth(backend, problem) < 0.6


def test_they_do_exist_in_two_phases():
    assert growth(two_phase.backend, PROBLEM) > 2
    assert growth(two_phase.backend, PROBLEM.replace(gradients=True)) > 4


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33])
@pytest.mark.parametrize("whole", [False, True])
def test_where_chunks_end_does_not_show(length, whole):
    problem = PROBLEM.replace(length=length, dtype="float64", has_initial_state=True)
    (inputs,) = make_inputs(problem)
    lengths = []

    def forward(u, *operands):
        lengths.append(len(u))
        return chunked_scan.eager(recurrence.sequential).forward(u, *operands)

    at_once = chunked_scan.scan(inputs, problem, length, chunked_scan.eager(recurrence.sequential))
    in_chunks = chunked_scan.scan(inputs, problem, 16, chunked_scan.Step(forward, backward=None), whole=whole)
    torch.testing.assert_close(in_chunks.out, at_once.out)
    torch.testing.assert_close(in_chunks.last_state, at_once.last_state)
    assert len(lengths) == -(-length // 16)
    assert sum(lengths) == (16 * len(lengths) if whole else length)
