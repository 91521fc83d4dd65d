"""Choice of the implementation that serves: logged once, overridden by the environment, never silently the slow one."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import scanlab
from scanlab.errors import ConfigError, UnavailableError
from scanlab.runtime import implementations as serving
from scanlab.runtime import ops as mixer
from scanlab_kernels import pytorch
from scanlab_kernels.cpu import extension as native


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """A process that has not chosen yet, and afterwards again."""
    serving.clear()
    yield
    serving.clear()


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """A machine without compiler and cached library."""
    monkeypatch.setenv("SCANLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.delenv("SCANLAB_MIXER", raising=False)
    monkeypatch.setattr(native, "extension", replace(native.extension, name="mixer_nowhere"))


@pytest.mark.usefixtures("native")
def test_native_serves_where_it_can(monkeypatch, caplog) -> None:
    monkeypatch.delenv("SCANLAB_MIXER", raising=False)
    caplog.set_level(logging.INFO, logger="scanlab")
    assert mixer.implementation() == mixer.implementation() == "native"
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert serving.ops_for(torch.ones(1)) is native.ops
    assert serving.ops_for(torch.ones(1, device="meta")) is pytorch


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_pytorch_serves_and_a_warning_says_why(caplog) -> None:
    x, weight = torch.randn(1, 3, 5), torch.randn(3, 2)
    for _ in range(2):
        torch.testing.assert_close(mixer.causal_conv1d(x, weight), mixer.in_torch()(mixer.causal_conv1d)(x, weight))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "no-such-compiler" in record.getMessage()


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize(("name", "value"), [("SCANLAB_MIXER", "native"), ("SCANLAB_STRICT", "1")])
def test_native_asked_for_and_not_to_be_had_is_an_error(monkeypatch, name, value) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UnavailableError, match="no-such-compiler"):
        mixer.add_norm(torch.ones(2), None, torch.ones(2))


def test_torch_can_be_asked_for(monkeypatch) -> None:
    monkeypatch.setenv("SCANLAB_MIXER", "torch")
    assert mixer.implementation() == "torch"
    assert serving.ops_for(torch.ones(1)) is pytorch


def test_an_unknown_choice_is_named(monkeypatch) -> None:
    monkeypatch.setenv("SCANLAB_MIXER", "cuda")
    with pytest.raises(ConfigError, match="SCANLAB_MIXER='cuda'"):
        mixer.implementation()


def test_a_gpu_that_triton_cannot_serve_is_served_by_pytorch_and_a_warning_says_why(monkeypatch, caplog) -> None:
    monkeypatch.delenv("SCANLAB_MIXER", raising=False)
    monkeypatch.setattr(serving.triton, "unavailable", lambda: "triton is not here.")
    assert serving.implementation("cuda") == serving.implementation("cuda") == "torch"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "on cuda run in PyTorch, several times slower: triton cannot run here: triton is not here." in record.message
    assert serving.explain() == "the mixer's ops on cuda: PyTorch: triton cannot run here: triton is not here."
    assert serving.explain() in scanlab.explain()


@pytest.mark.parametrize(("name", "value"), [("SCANLAB_MIXER", "triton"), ("SCANLAB_STRICT", "1")])
def test_triton_asked_for_and_not_to_be_had_is_an_error(monkeypatch, name, value) -> None:
    monkeypatch.delenv("SCANLAB_MIXER", raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(serving.triton, "unavailable", lambda: "triton is not here.")
    with pytest.raises(UnavailableError, match="triton is not here"):
        serving.implementation("cuda")


def test_float64_on_a_gpu_is_left_to_pytorch_and_a_warning_says_why(monkeypatch, caplog) -> None:
    monkeypatch.delenv("SCANLAB_MIXER", raising=False)
    monkeypatch.setitem(serving.LOADERS, "triton", lambda: "Triton")
    monkeypatch.setattr(serving.verification, "ops_disagreement", lambda *arguments: None)
    assert serving.implementation("cuda") == "triton"
    assert serving.implementation("cuda", double=True) == "torch"
    (record,) = caplog.records
    assert "in float64 run in PyTorch" in record.message
    assert serving.explain().splitlines()[0] == "the mixer's ops on cuda: Triton"


def test_triton_ops_that_disagree_with_pytorch_are_refused_loudly(monkeypatch, caplog) -> None:
    monkeypatch.delenv("SCANLAB_MIXER", raising=False)
    monkeypatch.setitem(serving.LOADERS, "triton", lambda: "Triton")
    monkeypatch.setattr(serving.verification, "ops_disagreement", lambda *arguments: "triton's add_norm disagrees")
    assert serving.implementation("cuda") == "torch"
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "triton's add_norm disagrees" in serving.explain()


@pytest.mark.usefixtures("native")
def test_native_serves_the_cpu_where_triton_is_asked_for(monkeypatch) -> None:
    monkeypatch.setenv("SCANLAB_MIXER", "triton")
    assert serving.implementation("cpu") == "native"


@pytest.mark.usefixtures("native")
def test_an_instruction_set_this_machine_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="sse1"):
        native.use_isa("sse1")


def test_importing_the_ops_and_their_models_does_not_load_the_compiler() -> None:
    program = "import sys, scanlab.runtime.ops, scanlab.models.vision_mamba; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.usefixtures("native")
def test_the_first_use_of_a_process_may_be_in_compiled_code() -> None:
    program = """
import torch
import scanlab
from scanlab.runtime import ops as mixer

x, weight = torch.randn(1, 3, 5), torch.randn(3, 2)
compiled = torch.compile(mixer.causal_conv1d, fullgraph=True, backend="aot_eager")
assert torch.equal(compiled(x, weight), mixer.causal_conv1d(x, weight))
with mixer.in_torch():
    torch._dynamo.reset()
    torch.testing.assert_close(compiled(x, weight), mixer.in_torch()(mixer.causal_conv1d)(x, weight))
"""
    subprocess.run([sys.executable, "-c", program], check=True)
