"""The ONNX graph of a Vision Mamba."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from helpers.tiny_vim import trained_tiny_vim
from scanlab.errors import UnavailableError
from scanlab.export.onnx_graph import write_graph


def test_the_graph_has_standard_operators_and_one_scan_per_layer(tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    write_graph(trained_tiny_vim(), torch.zeros(2, 3, 32, 32), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert {node.domain for node in graph.node} == {""}
    assert [node.op_type for node in graph.node].count("Scan") == 1
    assert [value.name for value in (*graph.input, *graph.output)] == ["images", "logits"]


def test_a_graph_with_linear_attention_has_a_node_for_each_direction(tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", minversion="1.32", reason="ONNX Runtime has no LinearAttention")
    model, images = trained_tiny_vim(), torch.randn(2, 3, 32, 32)
    write_graph(model, images, tmp_path / "model.onnx", "LinearAttention")
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert nodes.count("LinearAttention") == 2
    assert "Scan" not in nodes
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-4, atol=1e-4)


def test_an_older_runtime_is_named_with_its_cure(monkeypatch, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    monkeypatch.setattr(onnxruntime, "__version__", "1.31.2")
    with pytest.raises(UnavailableError, match=r"1\.31\.2 has no LinearAttention: install 1\.32 or newer"):
        write_graph(trained_tiny_vim(), torch.zeros(1, 3, 32, 32), tmp_path / "model.onnx", "LinearAttention")


def test_a_missing_library_is_named_with_its_cure(monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(UnavailableError, match=r"needs onnxscript: pip install 'scanlab\[onnx\]'"):
        write_graph(trained_tiny_vim(), torch.zeros(1, 3, 32, 32), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
