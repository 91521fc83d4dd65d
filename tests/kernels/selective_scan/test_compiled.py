"""The contract of `compiled`, and what its compiling must hold to."""

from typing import Any

import pytest

from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.errors import RejectedError
from scanlab.testing import BackendContract
from scanlab_kernels.selective_scan import bidirectional, chunked_scan, compiled
from scanlab_kernels.selective_scan.op import op

CORNERS: Any = op.corners
# Each shape is compiled for ten seconds: two sizes, of which one fills whole vectors, and of the shapes of B and C those
# that hold all differences of the others.
SIZES = ((6, 37), (32, 64))
SHAPES = ({}, {"groups": 2, "constant_C": True}, {"constant_B": True, "constant_C": True})


def is_taken(corner: ScanProblem) -> bool:
    return (corner.dim, corner.length) in SIZES and any(
        corner == corner.replace(**{"groups": 1, "constant_B": False, "constant_C": False, **shape}) for shape in SHAPES
    )


class TestContract(BackendContract):
    backend = compiled.backend
    config = {"chunk": 4}  # noqa: RUF012
    corners = tuple(filter(is_taken, CORNERS))


PROBLEM = ScanProblem(batch=2, dim=6, length=11, state=3)


@pytest.fixture
def interpreted(monkeypatch):
    """Bodies run as they are traced, so that what surrounds them can be tested in no time."""
    built = []

    def without_compiling(function, examples, threads):
        built.append([tuple(example.shape) for example in examples])
        return function

    for cache in (compiled.forward_kernel, compiled.backward_kernel):
        cache.cache_clear()
    monkeypatch.setattr(compiled, "compile_function", without_compiling)
    yield built
    for cache in (compiled.forward_kernel, compiled.backward_kernel):
        cache.cache_clear()


def test_problems_that_differ_in_length_or_direction_share_a_body(interpreted):
    for problem in (
        PROBLEM,
        PROBLEM.replace(length=300),
        PROBLEM.replace(direction="reverse"),
        PROBLEM.replace(has_D=False),
    ):
        compiled.backend.build(problem)
    assert len(interpreted) == 1
    compiled.backend.build(PROBLEM.replace(gradients=True))
    assert len(interpreted) == 2
    compiled.backend.build(PROBLEM.replace(dim=8))
    assert len(interpreted) == 3


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"constant_B": True}, {"constant_C": True}])
def test_examples_have_the_layout_of_the_operands(interpreted, options):
    problem = PROBLEM.replace(layout="dim_last", **options)
    compiled.backend.build(problem, {"chunk": 4})
    (expected,) = interpreted
    seen = []

    def forward(*part):
        assert all(tensor.is_contiguous() for tensor in part)
        seen.append([tuple(tensor.shape) for tensor in part])
        return compiled.unrolled(*part)

    step = chunked_scan.Step(forward, backward=None)
    bidirectional.directed(lambda inputs: chunked_scan.scan(inputs, problem, 4, step, whole=True), problem)(
        *make_inputs(problem)
    )
    assert seen == [expected] * 3


def test_rejects_complex_decays():
    with pytest.raises(RejectedError, match="complex A"):
        compiled.backend.build(PROBLEM.replace(complex_A=True))


def test_is_registered():
    assert registry.get("compiled") is compiled.backend
