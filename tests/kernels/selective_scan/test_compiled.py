"""The contract of `compiled`, and what its compiling must hold to."""

import os
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.errors import RejectedError, UnavailableError
from scanlab.testing import BackendContract
from scanlab_kernels.selective_scan import bidirectional, chunked_scan, compiled
from scanlab_kernels.selective_scan.op import op

CORNERS: Any = op.corners


class TestContract(BackendContract):
    backend = compiled.backend
    # Each shape is compiled for some seconds: the shortest body, few sizes, of which one fills whole vectors.
    config = {"chunk": 4}  # noqa: RUF012
    corners = tuple(corner for corner in CORNERS if (corner.dim, corner.length) in ((6, 37), (32, 64)))


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


def test_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "find_compiler", lambda: None)
    with pytest.raises(UnavailableError, match="no C\\+\\+ compiler.*install"):
        compiled.backend.build(PROBLEM)
    monkeypatch.undo()
    if compiled.find_compiler() is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UnavailableError, match=r"Python\.h is missing.*install"):
        compiled.backend.build(PROBLEM)


def test_keeps_torchs_code_where_nobody_else_writes(monkeypatch, tmp_path):
    monkeypatch.setenv("SCANLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(compiled.TORCH_CACHE, raising=False)
    with compiled.private_cache():
        folder = Path(os.environ[compiled.TORCH_CACHE])
        assert folder.is_relative_to(tmp_path)
        assert folder.stat().st_mode & 0o777 == 0o700
    assert compiled.TORCH_CACHE not in os.environ
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(UnavailableError, match="chmod go-w"), compiled.private_cache():
        pass
    monkeypatch.setenv(compiled.TORCH_CACHE, str(tmp_path))
    with compiled.private_cache():
        assert os.environ[compiled.TORCH_CACHE] == str(tmp_path)


def test_is_registered():
    assert registry.get("compiled") is compiled.backend
