"""The contract of `compiled`, and what its compiling must hold to."""

from collections.abc import Iterator
from typing import Any

import pytest

from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.contract.space import Config
from scanlab.contract.verify import reference_outputs, verify
from scanlab.errors import RejectedError
from scanlab.testing import BackendContract
from scanlab_kernels.selective_scan import bidirectional, chunked_scan, compiled
from scanlab_kernels.selective_scan.op import op

CORNERS: Any = op.corners
PROBLEM = ScanProblem(batch=2, dim=6, length=11, state=3)


@pytest.fixture
def interpreted(monkeypatch):
    """Chunks run as they are traced, so that what surrounds them can be tested in no time."""
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


@pytest.mark.usefixtures("interpreted")
class TestContract(BackendContract):
    backend = compiled.backend
    config = {"chunk": 4}  # noqa: RUF012
    corners = tuple(corner for corner in CORNERS if (corner.dim, corner.length) in ((6, 37), (32, 64)))


class TestCompiledCode(BackendContract):
    """The contract of compiled code for the plain problem; each shape is compiled for ten seconds."""

    backend = compiled.backend
    config = {"chunk": 4}  # noqa: RUF012
    corners = CORNERS[:1]

    def configs(self) -> Iterator[Config]:
        """Yield the configuration of the other tests alone."""
        yield self.backend.space.complete(self.config, self.plain(), self.backend.name)


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({"dim": 32, "length": 64, "state": 16}, {"chunk": 8, "threads": 1}),  # whole vectors
        ({"constant_B": True, "constant_C": True, "has_initial_state": True}, {"chunk": 4}),
        ({"dtype": "float64", "groups": 2, "constant_C": True, "layout": "dim_last"}, {"chunk": 4}),
    ],
    ids=str,
)
def test_compiled_code_of_other_shapes_agrees_with_the_reference(options, config):
    reason = compiled.backend.unavailable()
    if reason is not None:
        pytest.skip(reason)
    problem = PROBLEM.replace(gradients=True, **options)
    verdict = verify(compiled.backend.build(problem, config), reference_outputs(problem, make_inputs(problem)))
    assert verdict.passed, verdict.reason


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
