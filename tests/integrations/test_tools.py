"""Tools that look into a model, on patched models of transformers and on the drop-in's: what they give is right."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from helpers.transformers_families import prompt, small
from scanlab.contract.cpu import torch_threads
from scanlab.integrations.mamba_ssm.modules.mamba2 import Mamba2
from scanlab.integrations.mamba_ssm.modules.mamba_simple import Mamba
from scanlab.integrations.transformers import patch

pytest.importorskip("transformers", minversion="5.23")


class Logits(nn.Module):
    """A language model as a function from token ids to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(ids, use_cache=False).logits
        return logits


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


def layer(kind: str) -> nn.Module:
    """Return a layer of the drop-in."""
    torch.manual_seed(0)
    made = Mamba(32, d_state=8) if kind == "Mamba" else Mamba2(32, d_state=8, headdim=16)
    return made.eval()


@pytest.fixture(params=["patched Mamba", "patched Mamba2", "drop-in Mamba", "drop-in Mamba2"])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """A model in evaluation mode, and an input of length 13."""
    way, kind = request.param.split()
    if way == "drop-in":
        return layer(kind), torch.randn(3, 13, 32)
    model = small(kind)
    patch(model)
    return Logits(model).eval(), prompt(padded=False)["input_ids"]


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


# Each way and each kind of layer once, where a case takes seconds.
@pytest.mark.parametrize("case", ["patched Mamba2", "drop-in Mamba"], indirect=True)
def test_a_compiled_model_is_one_graph_for_every_length(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for length in (13, 9):
            close(compiled(x[:, :length]), model(x[:, :length]))


@pytest.mark.parametrize("case", ["patched Mamba", "drop-in Mamba2"], indirect=True)
def test_a_compiled_model_is_trained(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    want, got = (torch.autograd.grad(each(x).square().sum(), [*model.parameters()]) for each in (model, compiled))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_exported_model_takes_other_lengths(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({1: torch.export.Dim("length", min=4, max=64)},))
        for length in (13, 5):
            close(program.module()(x[:, :length]), model(x[:, :length]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_model_is_saved_and_loaded(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    file = io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, (x,)), file)
        file.seek(0)
        close(torch.jit.load(file)(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("case", ["patched Mamba2", "drop-in Mamba"], indirect=True)
def test_a_model_traced_with_its_gradients_is_differentiable(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    traced = torch.jit.trace(model, (x,))
    want, got = (torch.autograd.grad(each(x).square().sum(), [*model.parameters()]) for each in (model, traced))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_first_call_of_a_process_may_be_traced() -> None:
    code = """
import torch
from scanlab.integrations.mamba_ssm.modules.mamba_simple import Mamba
torch.jit.trace(Mamba(16), torch.ones(1, 5, 16))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize("case", ["patched Mamba", "drop-in Mamba2"], indirect=True)
def test_an_onnx_graph_takes_other_lengths(case: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    model, x = case
    length = torch.export.Dim("length", min=4, max=64)
    with torch.no_grad():
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False, dynamic_shapes=({1: length},))
        program.save(str(tmp_path / "model.onnx"))
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        for size in (13, 5):
            (got,) = session.run(None, {session.get_inputs()[0].name: x[:, :size].numpy()})
            close(torch.from_numpy(got), model(x[:, :size]))


def test_floating_point_operations_are_counted_in_both_passes(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    counts = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    layers = sum(hasattr(module, "A_log") for module in model.modules())
    updates = layers * 3 * 64 * 13 * 8  # batch x dim x length x state
    if "scanlab_ssd.forward" in counts:
        assert counts["scanlab_ssd.forward"] == 4 * updates
        assert counts["scanlab_ssd.backward"] == 12 * updates
    else:
        assert counts["scanlab.scan_with_checkpoints"] == 8 * updates
        assert counts["scanlab.scan_backward"] == 24 * updates


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("kind", ["Mamba", "Mamba2"])
def test_a_copy_of_a_patched_model_is_patched(kind: str, copied: Any) -> None:
    model, ids = small(kind), prompt(padded=False)["input_ids"]
    patch(model)
    other = copied(model)
    mixers = [layer.mixer for layer in other.backbone.layers]
    assert [mixer.forward.__module__ for mixer in mixers] == ["scanlab.integrations.transformers"] * len(mixers)
    with torch.no_grad():
        mixers[0].D.add_(1.0)
        changed = other(ids).logits
        model.backbone.layers[0].mixer.D.add_(1.0)
        close(changed, model(ids).logits)
    patch(other)


def test_data_parallel_on_a_cpu_runs_the_model_itself(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    close(nn.DataParallel(model)(x), model(x))


def test_tensors_without_data_give_shapes(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    with torch.no_grad():
        assert model.to("meta")(x.to("meta")).shape[:2] == x.shape[:2]


@pytest.mark.parametrize("kind", ["FalconMamba", "Mamba2"])
def test_an_offloaded_model_gives_what_it_gave(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model, ids = small(kind), prompt(padded=False)["input_ids"]
    with torch.no_grad():
        want = model(ids).logits
        patch(model)
        accelerate.cpu_offload(model, execution_device="cpu")
        close(model(ids).logits, want)
    assert any("its convolution has hooks, such as those of offloading" in each.message for each in caplog.records)


@pytest.mark.parametrize("kind", ["Mamba", "Mamba2"])
def test_an_offloaded_layer_of_the_drop_in_gives_what_it_gave(kind: str) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model, x = layer(kind), torch.randn(3, 13, 32)
    with torch.no_grad():
        want = model(x)
        accelerate.cpu_offload(model, execution_device="cpu")
        close(model(x), want)


@pytest.mark.parametrize("kind", ["Mamba", "Mamba2"])
def test_a_model_dispatched_by_a_map_gives_what_it_gave(kind: str) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model, ids = small(kind), prompt(padded=False)["input_ids"]
    with torch.no_grad():
        want = model(ids).logits
        patch(model)
        accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
        close(model(ids).logits, want)


# peft refuses the output projection, and transformers reads past an adapter of dt_proj
TARGETS = {"Mamba": ["in_proj", "x_proj"], "Mamba2": ["in_proj"]}


@pytest.mark.parametrize("kind", ["Mamba", "Mamba2"])
def test_adapters_of_a_patched_model_are_trained_as_without_the_patch(kind: str) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(target_modules=TARGETS[kind], init_lora_weights=False, task_type="CAUSAL_LM")
    found = []
    for patched in (False, True):
        torch.manual_seed(1)
        model = peft.get_peft_model(small(kind), config)
        if patched:
            patch(model)
        model(**prompt(padded=True)).logits.square().mean().backward()
        found.append([each.grad for each in model.parameters() if each.grad is not None])
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["Mamba", "Mamba2"])
def test_adapters_of_the_drop_in_are_trained_and_merged(kind: str) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    targets = [*TARGETS[kind], "out_proj"]
    model = peft.get_peft_model(
        nn.Sequential(layer(kind)), peft.LoraConfig(target_modules=targets, init_lora_weights=False)
    )
    x = torch.randn(3, 13, 32)
    model(x).square().sum().backward()
    adapters = [each for name, each in model.named_parameters() if "lora" in name]
    assert len(adapters) == 2 * len(targets)
    assert all(each.grad is not None and bool(each.grad.abs().sum() > 0) for each in adapters)
    with torch.no_grad():
        want = model.eval()(x)
        close(model.merge_and_unload()(x), want)
