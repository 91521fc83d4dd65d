"""Mamba-2's scan inside graphs: torch.compile, torch.export, torch.jit.trace and ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scanlab.errors import UnavailableError
from scanlab.runtime.ssd import ssd
from scanlab_kernels.ssd.problem import SsdInputs, SsdProblem, make_inputs

HEADS, HEAD_DIM, STATE = 4, 5, 3
DIM = HEADS * HEAD_DIM


class Layer(nn.Module):
    """A layer with a scan in it, (batch, length, dim) -> (batch, length, dim)."""

    def __init__(self, packed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.packed = packed
        self.projection = nn.Linear(DIM, 2 * DIM + 2 * STATE + HEADS)
        self.A_log = nn.Parameter(torch.rand(HEADS))
        self.D = nn.Parameter(torch.rand(HEADS))

    def forward(self, u: Tensor) -> Tensor:
        x, z, B, C, dt = self.projection(u).split([DIM, DIM, STATE, STATE, HEADS], dim=-1)
        x, z = x.unflatten(-1, (HEADS, -1)), z.unflatten(-1, (HEADS, -1))
        seq_idx = torch.zeros(u.shape[:2], dtype=torch.int32) if self.packed else None
        A = -torch.exp(self.A_log)
        inputs = SsdInputs(x, dt, A, B[:, :, None], C[:, :, None], self.D, z, seq_idx=seq_idx)
        return ssd(inputs, dt_softplus=True, dt_limit=(0.01, 2.0)).out.flatten(2)


@pytest.fixture
def layer() -> Layer:
    return Layer()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 13, DIM, generator=torch.Generator().manual_seed(1))


def test_a_compiled_scan_is_one_graph_for_every_length(layer: Layer, x: Tensor) -> None:
    torch.compiler.reset()
    graph = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for length in (13, 9):
        torch.testing.assert_close(graph(x[:, :length]), layer(x[:, :length]))


def test_a_compiled_scan_is_trained(layer: Layer, x: Tensor) -> None:
    torch.compiler.reset()
    graph = torch.compile(layer, fullgraph=True, backend="aot_eager")
    parameters = list(layer.parameters())
    expected = torch.autograd.grad(layer(x).square().sum(), parameters)
    for got, want in zip(torch.autograd.grad(graph(x).square().sum(), parameters), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("packed", [False, True])
def test_an_exported_scan_takes_other_lengths(packed: bool, x: Tensor) -> None:
    layer = Layer(packed).eval()
    length = torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({1: length},))
    assert [node.target for node in program.graph.nodes].count(torch.ops.scanlab_runtime.ssd.default) == 1
    for size in (13, 4):
        torch.testing.assert_close(program.module()(x[:, :size]), layer(x[:, :size]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_traced_scan_takes_other_lengths_and_refuses_second_derivatives(layer: Layer, x: Tensor) -> None:
    traced = torch.jit.trace(layer, (x,))
    for size in (13, 4):
        torch.testing.assert_close(traced(x[:, :size]), layer(x[:, :size]))
    (gradient,) = torch.autograd.grad(traced(x).sum(), layer.D, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        gradient.sum().backward()


@pytest.mark.parametrize("options", [{}, {"has_initial_state": True, "groups": 2, "skip": "channel"}])
def test_the_op_meets_what_torch_asks_of_it(options: dict[str, Any]) -> None:
    (inputs,) = make_inputs(SsdProblem(batch=2, length=7, heads=4, head_dim=3, state=2, has_seq_idx=True, **options))
    leaves = [each.requires_grad_() if each is not None and each.is_floating_point() else each for each in inputs]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.scanlab_runtime.ssd.default, (*leaves, True, 0.0, 1.0), test_utils=checks)


def test_operations_are_counted(layer: Layer, x: Tensor) -> None:
    torch.compiler.reset()
    with torch.no_grad():
        layer(x)
        with FlopCounterMode(display=False) as counter:
            layer(x)
    counts = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    assert counts["scanlab_ssd.forward"] == 4 * x.shape[0] * x.shape[1] * DIM * STATE


def test_an_onnx_graph_computes_the_same(layer: Layer, x: Tensor, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = str(tmp_path / "layer.onnx")
    torch.onnx.export(layer.eval(), (x,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file)
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), layer(x).detach(), rtol=1e-5, atol=1e-5)


def test_an_onnx_graph_of_packed_sequences_is_refused(x: Tensor) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(Exception, match="ONNX holds no scan with seq_idx") as caught:
        torch.onnx.export(Layer(packed=True).eval(), (x,), dynamo=True, verbose=False)
    causes: list[BaseException] = [caught.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert any(isinstance(each, UnavailableError) for each in causes)
