"""Memory is bounded by the chunk, in the backward pass too; and where a chunk ends does not show."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scanlab.kernels import associative, chunked, chunks
from scanlab.problem import ScanInputs, ScanProblem, make_inputs

PROBLEM = ScanProblem(batch=2, dim=24, length=400, state=16)


class LargestTensor(TorchDispatchMode):
    """The bytes behind the largest tensor that torch makes meanwhile."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"constant_B": True, "constant_C": True}, {"complex_A": True}])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("backend", [chunked.backend, associative.backend], ids=lambda backend: backend.name)
def test_no_tensor_is_larger_than_a_chunk_of_states(backend, options, gradients):
    problem = PROBLEM.replace(gradients=gradients, **options)
    (inputs,) = make_inputs(problem)
    leaves = ScanInputs(**{name: tensor.requires_grad_(gradients) for name, tensor in inputs.tensors().items()})
    scan = backend.build(problem, {"chunk": 16})
    with LargestTensor() as largest:
        out = scan(leaves).out
        if gradients:
            torch.autograd.grad(out.sum(), list(leaves.tensors().values()))
    item = inputs.A.itemsize
    states_of_a_chunk = 16 * problem.batch * problem.dim * problem.state * item
    outputs = problem.batch * problem.dim * problem.length * item
    projection = problem.batch * problem.groups * problem.state * problem.length * item
    assert largest.bytes <= max(states_of_a_chunk, outputs, projection)
    assert largest.bytes < problem.state_updates * item / 8


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33])
@pytest.mark.parametrize("whole", [False, True])
def test_where_chunks_end_does_not_show(length, whole):
    problem = PROBLEM.replace(length=length, dtype="float64", has_initial_state=True)
    (inputs,) = make_inputs(problem)
    lengths = []

    def step(u, *operands):
        lengths.append(len(u))
        return chunks.eager(chunks.recurrence.sequential)(u, *operands)

    at_once = chunks.scan(inputs, problem, length, chunks.eager(chunks.recurrence.sequential))
    in_chunks = chunks.scan(inputs, problem, 16, step, whole=whole)
    torch.testing.assert_close(in_chunks.out, at_once.out)
    torch.testing.assert_close(in_chunks.last_state, at_once.last_state)
    assert len(lengths) == -(-length // 16)
    assert sum(lengths) == (16 * len(lengths) if whole else length)
