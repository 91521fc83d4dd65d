"""VMamba in the graphs that torch builds: traced, exported, compiled, and as ONNX."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scanlab.models.vmamba import FAMILIES, VMamba


@pytest.fixture(scope="module")
def model() -> VMamba:
    torch.manual_seed(0)
    return VMamba((1,), 8, FAMILIES["s1"], num_classes=5).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(1, 3, 24, 32)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_traced_model_is_saved_and_loaded(model, images):
    with torch.no_grad():
        file = io.BytesIO()
        torch.jit.save(torch.jit.trace(model, (images,)), file)
        file.seek(0)
        close(torch.jit.load(file)(images), model(images))


def test_an_exported_model_computes_the_same(model, images):
    with torch.no_grad():
        close(torch.export.export(model, (images,)).module()(images), model(images))


def test_a_compiled_model_is_one_graph_and_is_trained(model, images):
    def gradient(compute) -> Tensor:
        model.zero_grad()
        compute(images).square().sum().backward()
        return model.layers[0].blocks[0].op.dt_projs_weight.grad.clone()

    torch.compiler.reset()
    close(gradient(torch.compile(model, fullgraph=True, backend="aot_eager")), gradient(model))


def test_an_onnx_graph_computes_the_same(model, images, tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    with torch.no_grad():
        torch.onnx.export(model, (images,), dynamo=True, verbose=False).save(str(tmp_path / "model.onnx"))
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        close(torch.from_numpy(got), model(images))


def test_shapes_are_known_without_data(images):
    with torch.device("meta"):
        model = VMamba((1,), 8, FAMILIES["v0"], num_classes=5).eval()
    assert model(images.to("meta")).shape == (1, 5)


def test_operations_of_the_scans_are_counted(model, images):
    with torch.no_grad():
        model(images)
        with FlopCounterMode(display=False) as counter:
            model(images)
    counts = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    assert counts["scanlab_cross_scan.cross_scan_2d"] == 2 * 4 * 8 * 6 * 8 * (4 * 1 + 1)
