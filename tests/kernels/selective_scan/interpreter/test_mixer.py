"""GPU kernels of a Mamba block other than the scan in the interpreter, against PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import scanlab
from helpers.instruction_sets import TOLERANCES, assert_close, gradients, wide
from scanlab.errors import ProblemError, UnavailableError
from scanlab.models.vision_mamba import VisionMamba
from scanlab.runtime import decisions, dispatch
from scanlab.runtime import implementations as serving
from scanlab.runtime import ops as mixer
from scanlab_kernels.causal_conv1d.triton import backward as conv_backward
from scanlab_kernels.causal_conv1d.triton import tile as conv_tile
from scanlab_kernels.selective_scan.triton import backend as triton

FLOAT, HALF = torch.float32, torch.float16


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Ask for the GPU kernels by name, with few steps in a program so that there are several programs."""
    monkeypatch.setenv("SCANLAB_MIXER", "triton")
    monkeypatch.setattr(conv_tile, "STEPS", 2)
    monkeypatch.setattr(conv_backward, "TURNS", 2)
    dispatch.clear()
    yield
    dispatch.clear()


def leaf(*shape: int, dtype: torch.dtype = FLOAT) -> Tensor:
    """Return random numbers that require gradients."""
    return torch.randn(shape).to(dtype).requires_grad_()


def agrees(op: Callable[..., object], reference: Callable[..., object], tensors: dict[str, Tensor], dtype=FLOAT):
    """Compare the outputs and gradients of `op` with those of `reference` in float64."""
    exact = {name: wide(tensor) for name, tensor in tensors.items()}
    got, want = op(**tensors), reference(**exact)
    got, want = (each if isinstance(each, tuple) else (each,) for each in (got, want))
    seeds = [torch.randn(each.shape, dtype=torch.float64).to(each.dtype) for each in got]
    found, truth = (gradients(outs, list(leaves.values()), seeds) for outs, leaves in ((got, tensors), (want, exact)))
    names = [*(f"out {i}" for i in range(len(got))), *tensors]
    assert_close([*got, *found], [*want, *truth], names, 4 * TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("extra", "reverse", "dtype"),
    [
        (None, False, FLOAT),
        (None, True, HALF),
        ("initial_states", False, HALF),
        ("initial_states", True, FLOAT),
        ("seq_idx", False, FLOAT),
        ("seq_idx", True, HALF),
    ],
)
def test_a_convolution(extra, reverse, dtype):
    torch.manual_seed(0)
    tensors = {"x": torch.randn(2, 5, 3).to(dtype).mT.requires_grad_(), "weight": leaf(3, 4), "bias": leaf(3)}
    options = {"activation": "silu", "reverse": reverse}
    if extra == "initial_states":
        tensors["initial_states"] = leaf(2, 3, 3, dtype=dtype)
    if extra == "seq_idx":
        options["seq_idx"] = torch.tensor([[0, 0, 1, 1, 1], [2, 2, 2, -1, -1]], dtype=torch.int32)
    agrees(
        lambda **given: mixer.causal_conv1d(**given, **options),
        lambda **given: mixer.in_torch()(mixer.causal_conv1d)(**given, **options),
        tensors,
        dtype,
    )


@pytest.mark.parametrize(("width", "dim", "length"), [(1, 2, 3), (2, 65, 9), (4, 3, 1), (6, 33, 3)])
def test_both_directions_of_any_width(width, dim, length):
    def reference(x, weight, bias, weight_reverse, bias_reverse):
        return (
            mixer.in_torch()(mixer.causal_conv1d)(x, weight, bias),
            mixer.in_torch()(mixer.causal_conv1d)(x, weight_reverse, bias_reverse, reverse=True),
        )

    torch.manual_seed(0)
    weights = {
        "weight": leaf(dim, width),
        "bias": leaf(dim),
        "weight_reverse": leaf(dim, width),
        "bias_reverse": leaf(dim),
    }
    agrees(mixer.causal_conv1d_bidirectional, reference, {"x": leaf(1, dim, length), **weights})


@pytest.mark.parametrize(
    ("kind", "has_residual", "dtype"),
    [("rms", False, FLOAT), ("rms", True, HALF), ("layer", True, FLOAT), ("layer", False, HALF)],
)
def test_add_and_norm(kind, has_residual, dtype):
    torch.manual_seed(0)
    tensors = {"hidden": leaf(3, 1, 12, dtype=dtype), "weight": leaf(12)}
    if kind == "layer":
        tensors["bias"] = leaf(12)
    if has_residual:
        tensors["residual"] = leaf(3, 1, 12)
    options = {"kind": kind, "residual_in_fp32": has_residual}
    agrees(
        lambda residual=None, **given: mixer.add_norm(residual=residual, **given, **options),
        lambda residual=None, **given: mixer.in_torch()(mixer.add_norm)(residual=residual, **given, **options),
        tensors,
        dtype,
    )


def test_the_sum_alone_has_its_gradient():
    hidden = leaf(2, 3)
    (gradient,) = torch.autograd.grad(mixer.add_norm(hidden, None, torch.ones(3))[1].sum(), hidden)
    assert torch.equal(gradient, torch.ones(2, 3))


def test_nothing_is_computed_of_nothing():
    assert mixer.add_norm(torch.ones(0, 3), None, torch.ones(3))[0].shape == (0, 3)
    assert mixer.causal_conv1d(torch.ones(0, 2, 3), torch.ones(2, 4)).shape == (0, 2, 3)
    x, weight = torch.ones(2, 3, 0, requires_grad=True), leaf(3, 2)
    assert torch.equal(torch.autograd.grad(mixer.causal_conv1d(x, weight).sum(), weight)[0], torch.zeros(3, 2))


def test_a_row_that_does_not_fit_into_registers_is_refused():
    with pytest.raises(ProblemError, match=r"dim is 32769: at most 32768 on a GPU; call inside scanlab"):
        mixer.add_norm(torch.ones(1, 32769), None, torch.ones(32769))


@pytest.mark.parametrize(
    ("steps", "circular", "dtype"), [(None, False, FLOAT), (1, True, HALF), (7, False, HALF), (7, True, FLOAT)]
)
def test_a_step_of_a_convolution(steps, circular, dtype):
    torch.manual_seed(0)
    x = torch.randn(3, 5, *(() if steps is None else (steps,))).to(dtype)
    state, weight, bias = torch.randn(4, 5, 4).to(dtype).mT.contiguous().mT, torch.randn(5, 4), torch.randn(5)
    options: dict[str, Any] = {
        "activation": "silu",
        "cache_seqlens": torch.tensor([0, 2, 9], dtype=torch.int32) if circular else None,
        "conv_state_indices": torch.tensor([3, -1, 0], dtype=torch.int32),
    }
    exact = state.double()
    out = mixer.causal_conv1d_update(x, state, weight, bias, **options)
    want = mixer.in_torch()(mixer.causal_conv1d_update)(x.double(), exact, weight, bias, **options)
    assert_close([out], [want], ["out"], 2 * TOLERANCES[dtype])
    assert torch.equal(state.double(), exact)


def step_of(dtype: torch.dtype, own: tuple[int, ...], groups: tuple[int, ...]) -> dict[str, Any]:
    """The arguments of a decoding step of two of three rows: `own` is (dim,) or (heads, dim)."""
    return {
        "state": torch.randn(3, *own, 5).to(dtype),
        "x": torch.randn(2, *own).to(dtype),
        "dt": torch.rand(2, *own).to(dtype),
        "A": torch.rand(*own, 5),
        "B": torch.randn(2, *groups, 5).to(dtype),
        "C": torch.randn(2, *groups, 5).to(dtype),
        "D": torch.randn(own),
        "z": torch.randn(2, *own).to(dtype),
        "dt_bias": torch.rand(own),
        "state_batch_indices": torch.tensor([2, -1], dtype=torch.int32),
    }


@pytest.mark.parametrize(
    ("own", "groups", "log_A", "dtype"),
    [
        ((7,), (), True, FLOAT),
        ((4, 3), (2,), False, FLOAT),
        ((4, 3), (2,), True, HALF),
        ((1, 65), (1,), False, HALF),
    ],
)
def test_a_step_of_the_scan(own, groups, log_A, dtype):
    torch.manual_seed(0)
    given = step_of(dtype, own, groups)
    if not log_A:
        given |= {"D": None, "z": None, "dt_bias": None, "A": -given["A"]}
    exact = {name: wide(tensor) for name, tensor in given.items()}
    options = {"dt_softplus": log_A, "log_A": log_A}
    out = mixer.selective_state_update(**given, **options)
    want = mixer.in_torch()(mixer.selective_state_update)(**exact, **options)
    assert_close([out, given["state"]], [want, exact["state"]], ["out", "state"], 2 * TOLERANCES[dtype])


def test_a_row_beyond_the_state_is_nan_and_touches_nothing():
    given = step_of(FLOAT, (3,), ()) | {"state_batch_indices": torch.tensor([3, 0], dtype=torch.int32)}
    before = given["state"].clone()
    out = mixer.selective_state_update(**given)
    assert out[0].isnan().all()
    assert out[1].isfinite().all()
    assert torch.equal(given["state"][1:], before[1:])
    x, state = torch.ones(2, 3), torch.ones(1, 3, 2)
    rows = torch.tensor([0, 1], dtype=torch.int32)
    out = mixer.causal_conv1d_update(x, state, torch.ones(3, 2), conv_state_indices=rows)
    assert out[1].isnan().all()
    assert torch.equal(out[0], torch.full((3,), 2.0))


def test_a_complex_rate_is_refused():
    given = step_of(FLOAT, (3,), ())
    with pytest.raises(ProblemError, match="A is torch.complex64: must be float32"):
        mixer.selective_state_update(**given | {"A": given["A"].to(torch.complex64)})


def token() -> dict[str, Tensor]:
    """Return the arguments of a whole mixer's step."""
    shapes = {"projected": (2, 8), "conv_state": (2, 4, 4), "state": (2, 4, 3), "conv_weight": (4, 4)}
    shapes |= {"conv_bias": (4,), "x_weight": (8, 4), "dt_weight": (4, 2), "dt_bias": (4,), "A_log": (4, 3), "D": (4,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_a_token_through_a_mixer():
    given = token()
    exact = {name: tensor.double() for name, tensor in given.items()}
    got, want = mixer.mixer_step(**given), mixer.in_torch()(mixer.mixer_step)(**exact)
    states = ["conv_state", "state"]
    assert_close(
        [got, *(given[name] for name in states)], [want, *(exact[name] for name in states)], ["out", *states], 4e-6
    )


def test_gradients_are_the_same_bits_every_time():
    x, weight, factor = leaf(2, 3, 7), leaf(3, 4), leaf(7)

    def run():
        out = mixer.add_norm(mixer.causal_conv1d(x, weight, activation="silu"), None, factor)[0]
        return torch.autograd.grad(out.square().sum(), [x, weight, factor])

    assert all(map(torch.equal, run(), run()))


def test_the_ops_satisfy_torch():
    assert serving.implementation() == "triton"
    ops = torch.ops.scanlab_mixer_triton
    x, weight, bias, state = leaf(1, 3, 2), leaf(3, 2), leaf(3), leaf(1, 3, 1)
    torch.library.opcheck(ops.causal_conv1d.default, (x, weight, bias, weight, None, None, None, True))
    torch.library.opcheck(ops.causal_conv1d.default, (x, None, None, weight, bias, None, state, False))
    torch.library.opcheck(ops.add_norm.default, (leaf(2, 3, dtype=HALF), leaf(2, 3), bias, None, 1e-5, True, True))
    with torch.no_grad():
        rows = torch.tensor([0], dtype=torch.int32)
        step = (x[..., 0].detach(), state.detach().clone(), weight.detach(), None, None, rows, True)
        torch.library.opcheck(ops.causal_conv1d_update.default, step)
        given = {name: each for name, each in step_of(FLOAT, (3,), ()).items() if name != "state_batch_indices"}
        torch.library.opcheck(ops.selective_state_update.default, (*given.values(), True, None, True))
        torch.library.opcheck(ops.mixer_step.default, tuple(token().values()))


def test_steps_record_no_gradient_and_count_as_changes():
    given = step_of(FLOAT, (3,), ())
    given["A"].requires_grad_()
    version = given["state"]._version
    assert not mixer.selective_state_update(**given).requires_grad
    assert given["state"]._version > version


def test_second_derivatives_are_refused():
    x, weight = leaf(1, 2, 3), leaf(2, 2)
    (gradient,) = torch.autograd.grad(mixer.causal_conv1d(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        gradient.sum().backward()


def test_compiles_into_one_graph():
    x, weight = leaf(1, 3, 4), leaf(3, 4)

    def step(x, weight):
        return mixer.add_norm(mixer.causal_conv1d(x, weight, activation="silu"), None, torch.ones(4))[0]

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight), step(x, weight))


def test_the_interpreter_serves_the_cpu_alone():
    with pytest.raises(UnavailableError, match="in its interpreter, on the CPU; unset TRITON_INTERPRET"):
        serving.implementation("cuda")


def test_float64_is_refused_where_the_kernels_are_asked_for():
    with pytest.raises(UnavailableError, match="compute in float32"):
        mixer.causal_conv1d(torch.randn(1, 2, 3, dtype=torch.float64), torch.randn(2, 2))


def test_vision_mamba_is_the_same_on_the_kernels_of_the_gpu_and_of_the_cpu(monkeypatch):
    torch.manual_seed(0)
    model = VisionMamba(img_size=32, patch_size=16, embed_dim=32, depth=1, num_classes=3, d_state=4, drop_path_rate=0.0)
    images, seed = torch.rand(1, 3, 32, 32), torch.randn(1, 3)

    def run(scan: str, ops: str) -> list[Tensor]:
        monkeypatch.setenv("SCANLAB_MIXER", ops)
        dispatch.clear()
        model.scan = scan
        logits = model(images)
        return [logits, *torch.autograd.grad(logits, list(model.parameters()), seed)]

    on_gpu, on_cpu = run("triton", "triton"), run("reference", "torch")
    explained = scanlab.explain()
    assert "add_norm_torch" in explained
    assert "causal_conv1d_torch" in explained
    assert "triton" not in explained
    names = ["logits", *(name for name, _ in model.named_parameters())]
    assert_close(on_gpu, on_cpu, names, 2e-5)


def test_the_interpreter_serves_only_who_asks_for_it(monkeypatch):
    problem = scanlab.ScanProblem(batch=1, dim=2, length=3)
    assert decisions.refuses("triton", {}, problem) == "triton: here it serves only by name"
    monkeypatch.setattr(decisions, "most_similar", lambda problem: iter(()))
    assert "triton" not in [decision.backend for decision in decisions.decisions(problem, None)]
    assert triton.backend.unavailable() is None
    monkeypatch.delenv("SCANLAB_MIXER")
    dispatch.clear()
    assert serving.implementation() != "triton"
