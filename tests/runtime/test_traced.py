"""The scan inside graphs: torch.compile, torch.export, torch.jit.trace, and what each gives without them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scanlab
from scanlab.contract.problem import ScanInputs, ScanProblem, make_inputs
from scanlab.runtime.dispatch import scan

DIM, STATE = 6, 3


class Layer(nn.Module):
    """A layer with a scan in it, (batch, length, dim) -> (batch, length, dim)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projection = nn.Linear(DIM, 3 * DIM + 2 * STATE)
        self.A = nn.Parameter(-torch.rand(DIM, STATE))
        self.D = nn.Parameter(torch.rand(DIM))

    def forward(self, x: Tensor) -> Tensor:
        u, delta, z, B, C = self.projection(x).mT.split([DIM, DIM, DIM, STATE, STATE], dim=1)
        return scanlab.selective_scan_fn(u, delta, self.A, B, C, self.D, z, None, True).mT


@pytest.fixture
def layer() -> Layer:
    return Layer()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 13, DIM, generator=torch.Generator().manual_seed(1))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as one graph; compiled afresh, and not to machine code, which takes seconds."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def gradients(function: Callable[..., Any], module: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(function(x).square().sum(), list(module.parameters())))


def test_a_compiled_scan_is_one_graph_for_every_length(layer: Layer, x: Tensor) -> None:
    graph = compiled(layer)
    for length in (13, 9, 5):
        torch.testing.assert_close(graph(x[:, :length]), layer(x[:, :length]))


def test_a_compiled_scan_is_trained(layer: Layer, x: Tensor) -> None:
    for got, want in zip(gradients(compiled(layer), layer, x), gradients(layer, layer, x), strict=True):
        torch.testing.assert_close(got, want)


def test_an_exported_scan_takes_other_lengths(layer: Layer, x: Tensor) -> None:
    length = torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(layer.eval(), (x,), dynamic_shapes=({1: length},))
    assert [node.target for node in program.graph.nodes].count(torch.ops.scanlab_runtime.scan.default) == 1
    for size in (13, 4):
        torch.testing.assert_close(program.module()(x[:, :size]), layer(x[:, :size]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_traced_scan_is_saved_and_loaded(layer: Layer, x: Tensor) -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(layer.eval(), (x,)), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for size in (13, 4):
        torch.testing.assert_close(loaded(x[:, :size]), layer(x[:, :size]))


@pytest.mark.parametrize(
    "problem",
    [
        ScanProblem(batch=2, dim=6, length=11, state=3, direction="bidirectional", layout="dim_last"),
        ScanProblem(batch=2, dim=6, length=11, state=3, direction="reverse", groups=2, has_initial_state=True),
        ScanProblem(batch=1, dim=6, length=11, state=3, dtype="bfloat16", constant_B=True, has_D=False, has_z=False),
    ],
    ids=lambda problem: f"{problem.direction}-{problem.dtype}",
)
def test_every_kind_of_scan_is_compiled(problem: ScanProblem) -> None:
    inputs = make_inputs(problem)

    def run(*tensors: Tensor | None) -> tuple[Tensor, ...]:
        sets = [ScanInputs(*tensors[start : start + 9]) for start in range(0, len(tensors), 9)]
        return tuple(scan(*sets, direction=problem.direction))

    tensors = [tensor for each in inputs for tensor in each]
    for got, want in zip(compiled(run)(*tensors), run(*tensors), strict=True):
        assert got.stride() == want.stride()
        torch.testing.assert_close(got, want)


def test_the_backend_that_was_named_serves_the_graph(layer: Layer, x: Tensor) -> None:
    def run(u: Tensor) -> Any:
        A, B = -torch.ones(DIM, STATE), torch.ones(2, STATE, 13)
        return scanlab.selective_scan_fn(u, u, A, B, B, backend="reference")

    torch.testing.assert_close(compiled(run)(x.mT), run(x.mT))
    assert "reference" in scanlab.explain()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_second_derivatives_are_refused_by_name(layer: Layer, x: Tensor) -> None:
    traced = torch.jit.trace(layer, (x,))
    (gradient,) = torch.autograd.grad(traced(x).sum(), layer.A, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        gradient.sum().backward()
