"""The drop-in's modules: a Vision Mamba written by the official names, decoding, and the quirks of the original."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from helpers.official import RECIPE, Official
from helpers.official_names import untouched
from scanlab.contract.verify import relative_error
from scanlab.errors import ProblemError
from scanlab.integrations import mamba_ssm as drop_in
from scanlab.integrations.mamba_ssm.modules import mamba_simple
from scanlab.integrations.mamba_ssm.ops import selective_scan_interface as interface
from scanlab.integrations.mamba_ssm.utils.generation import InferenceParams
from scanlab.integrations.notices import warn_once
from scanlab.runtime import dispatch

EXPERIMENTS = Path(__file__).parents[4] / "experiments"
TOLERANCE = 2e-5


@pytest.fixture(autouse=True)
def small_scan(monkeypatch):
    """The scan itself is tested elsewhere: these tests need no compiler."""
    monkeypatch.setenv("SCANLAB_BACKEND", "two_phase:threads=1")
    dispatch.clear()
    yield
    dispatch.clear()


@pytest.fixture
def by_name(monkeypatch) -> Iterator[ModuleType]:
    """The module that imports all it needs by the official names."""
    with untouched():
        drop_in.install()
        monkeypatch.syspath_prepend(str(EXPERIMENTS))
        yield importlib.import_module("vim_by_name")
        monkeypatch.delitem(sys.modules, "vim_by_name")


def vim(by_name: ModuleType, golden: Official, **options: object) -> nn.Module:
    """The variant's model with its weights."""
    sizes = {"img_size": "size", "embed_dim": "dim", "depth": "depth", "num_classes": "classes"}
    model = by_name.Vim(**{ours: golden.config[name] for name, ours in sizes.items()}, **options)
    assert set(model.state_dict()) == set(golden.shapes)
    model.load_state_dict({name: torch.from_numpy(RECIPE.param(name, shape)) for name, shape in golden.shapes.items()})
    return model


@pytest.mark.parametrize("name", ["s_midcls", "t_full"])
def test_code_written_by_the_official_names_gives_the_official_logits(by_name, name):
    golden = Official(name)
    images = golden.images()[:1]
    with torch.no_grad():
        logits = vim(by_name, golden)(images)
    assert relative_error(logits, golden["logits_f64"][:1]) < TOLERANCE


@pytest.mark.parametrize("mixer", ["Mamba", "OfficialMamba", "PlainMamba"])
def test_its_gradients_are_the_official_ones(by_name, mixer):
    golden = Official("s_midcls")
    model = vim(by_name, golden, mixer=getattr(by_name, mixer))
    logits = model(golden.images())
    torch.sum(logits * torch.from_numpy(RECIPE.unit("gradseed/s_midcls", logits.shape))).backward()
    compared = 0
    for name, parameter in model.named_parameters():
        if f"grad/{name}" in golden:
            assert relative_error(parameter.grad, golden[f"grad/{name}"].double()) < TOLERANCE, name
            compared += 1
    assert compared > 20


def tokens(length: int = 9, dim: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(2, length, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "options", [{}, {"bias": True, "d_conv": 3, "d_state": 5, "dt_rank": 2, "init_layer_scale": 0.5}]
)
def test_the_slow_path_gives_the_same(options):
    mamba = mamba_simple.Mamba(16, **options)
    fast = mamba(tokens())
    mamba.use_fast_path = False
    torch.testing.assert_close(mamba(tokens()), fast)


def test_the_two_kinds_of_bidirectional_mixers():
    """v2 has weights of its own for the reverse direction and may be halved; v1 has a second A and is not halved."""
    x = tokens()
    torch.manual_seed(0)
    v2 = mamba_simple.Mamba(16, bimamba_type="v2")
    halved = mamba_simple.Mamba(16, bimamba_type="v2", if_divide_out=True)
    halved.load_state_dict(v2.state_dict())
    torch.testing.assert_close(halved(x), v2(x) / 2)
    forward, backward = mamba_simple.Mamba(16), mamba_simple.Mamba(16)
    weights = v2.state_dict()
    forward.load_state_dict({name: weights[name] for name in forward.state_dict()})
    others = {"A_log": "A_b_log", "D": "D_b"}
    for name in forward.state_dict():
        head, _, tail = name.partition(".")
        others.setdefault(name, f"{head}_b.{tail}" if f"{head}_b.{tail}" in weights else name)
    backward.load_state_dict({name: weights[others[name]] for name in backward.state_dict()})
    torch.testing.assert_close(v2(x), forward(x) + backward(x.flip(1)).flip(1))
    v1 = mamba_simple.Mamba(16, bimamba_type="v1", if_divide_out=True)
    assert set(v1.state_dict()) == {*forward.state_dict(), "A_b_log"}
    same_A = {name: value for name, value in v1.state_dict().items() if name != "A_b_log"}
    forward.load_state_dict(same_A)
    x = tokens(length=1)  # where both directions are one step, and there is nothing to convolve beside it
    torch.testing.assert_close(v1(x), 2 * forward(x))


@pytest.mark.parametrize(
    ("spelling", "official"),
    [
        ({"bimamba": True}, {"bimamba_type": "v2"}),
        ({"bimamba_type": "v2", "if_devide_out": True}, {"bimamba_type": "v2", "if_divide_out": True}),
        ({"bimamba_type": "v1", "bimamba": True}, {"bimamba_type": "v1"}),
    ],
    ids=str,
)
def test_the_spellings_of_forks(spelling, official):
    made, expected = mamba_simple.Mamba(16, **spelling), mamba_simple.Mamba(16, **official)
    made.load_state_dict(expected.state_dict())
    assert torch.equal(made(tokens()), expected(tokens()))


@pytest.mark.parametrize("bias", [True, False])
def test_the_third_branch_of_v3_scans_the_steps_of_slices_in_turn(bias):
    torch.manual_seed(0)
    mamba = mamba_simple.Mamba(16, bimamba_type="v3", nslices=3, bias=bias)
    x = tokens(length=12)

    def branch(xz: Tensor, suffix: str) -> Tensor:
        conv, x_proj, dt_proj = (getattr(mamba, f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj"))
        A, D = -getattr(mamba, f"A{suffix}_log").exp(), getattr(mamba, f"D{suffix}")
        return interface.mamba_inner_fn_no_out_proj(
            xz, conv.weight, conv.bias, x_proj.weight, dt_proj.weight, A, D=D, delta_bias=dt_proj.bias
        )

    xz = mamba.in_proj(x).mT
    dealt = [slice_ + 4 * which for slice_ in range(4) for which in range(3)]  # 0, 4, 8, 1, 5, 9, ...
    in_turn = torch.empty_like(xz[:, :32])
    in_turn[..., dealt] = branch(xz[..., dealt], "_s")
    expected = mamba.out_proj((branch(xz, "") + branch(xz.flip(-1), "_b").flip(-1) + in_turn).mT)
    torch.testing.assert_close(mamba(x), expected)
    mamba(x).sum().backward()
    assert all(parameter.grad is not None for parameter in mamba.parameters())
    assert list(mamba.state_dict())[:6] == ["A_log", "D", "A_b_log", "D_b", "A_s_log", "D_s"]
    states = mamba.allocate_inference_cache(2, 9)
    assert mamba.step(x[:, :1], *states)[0].shape == (2, 1, 16)


@pytest.mark.parametrize("bimamba_type", ["v1", "v2", "v3"])
def test_what_upstream_runs_forward_only_is_said_and_runs_forward_only(bimamba_type, caplog):
    warn_once.cache_clear()
    mamba = mamba_simple.Mamba(16, bimamba_type=bimamba_type, use_fast_path=False)
    out = mamba(tokens())
    forward = mamba_simple.Mamba(16)
    forward.load_state_dict({name: mamba.state_dict()[name] for name in forward.state_dict()})
    torch.testing.assert_close(out, forward(tokens()))
    assert "forward only" in caplog.text


@pytest.mark.parametrize("prompt", [1, 2, 6])
def test_prefill_and_steps_give_what_the_whole_sequence_gives(prompt):
    mamba = mamba_simple.Mamba(16, layer_idx=3)
    x = tokens()
    whole = mamba(x)
    cache = InferenceParams(max_seqlen=9, max_batch_size=2)
    parts = [mamba(x[:, :prompt], inference_params=cache)]
    for t in range(prompt, 9):
        cache.seqlen_offset = t
        parts.append(mamba(x[:, t : t + 1], inference_params=cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
    conv_state, ssm_state = cache.key_value_memory_dict[3]
    fresh = mamba.allocate_inference_cache(2, 9)
    assert [each.shape for each in fresh] == [conv_state.shape, ssm_state.shape] == [(2, 32, 4), (2, 32, 16)]
    mamba._get_states_from_cache(cache, 2, initialize_states=True)
    assert not conv_state.any()
    cache.reset(5, 2)
    assert (cache.seqlen_offset, cache.max_seqlen) == (0, 5)


def in_steps(mamba: mamba_simple.Mamba, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    states = mamba.allocate_inference_cache(len(x), x.shape[1], dtype=dtype)
    with torch.no_grad():
        return torch.cat([mamba.step(token, *states)[0] for token in x.split(1, dim=1)], 1)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16], ids=str)
def test_steps_under_autocast_give_what_the_whole_sequence_gives(dtype):
    mamba = mamba_simple.Mamba(16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        steps, whole = in_steps(mamba, tokens(), dtype), mamba(tokens())
    assert steps.dtype == whole.dtype == torch.bfloat16
    torch.testing.assert_close(steps, whole, rtol=0.05, atol=0.05 * float(whole.abs().max()))
    torch.testing.assert_close(whole.float(), mamba(tokens()).detach(), rtol=0.05, atol=0.05 * float(whole.abs().max()))


def test_what_a_step_refuses():
    mamba = mamba_simple.Mamba(16)
    states = mamba.allocate_inference_cache(2, 9, dtype=torch.float32)
    with pytest.raises(ProblemError, match="takes one"):
        mamba.step(tokens(2), *states)
    with pytest.raises(ProblemError, match="layer_idx"):
        mamba(tokens(), inference_params=InferenceParams(9, 2))
    with pytest.raises(NotImplementedError, match="dt_init='ones'"):
        mamba_simple.Mamba(16, dt_init="ones")  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match="bimamba_type=.v4.: must be one of v2, v1, none, v3"):
        mamba_simple.Mamba(16, bimamba_type="v4")
    with pytest.raises(ProblemError, match="length 9 with nslices=4: must be a multiple"):
        mamba_simple.Mamba(16, bimamba_type="v3", nslices=4)(tokens())


def test_initial_values_and_the_marks_that_training_scripts_look_for():
    torch.manual_seed(0)
    mamba = mamba_simple.Mamba(64, bimamba_type="v2", dtype=torch.bfloat16, init_layer_scale=0.1)
    assert {name: p.dtype for name, p in mamba.named_parameters() if p.dtype == torch.float32}.keys() == {
        *("gamma", "A_log", "D", "A_b_log", "D_b")
    }
    torch.testing.assert_close(mamba.A_b_log.exp(), torch.arange(1.0, 17).expand(128, 16))
    step = torch.nn.functional.softplus(mamba.dt_proj.bias.float())
    assert (step > 0.0009).all()
    assert (step < 0.11).all()
    assert vars(mamba.dt_proj.bias)["_no_reinit"]
    assert vars(mamba.A_log)["_no_weight_decay"]
    assert mamba.dt_proj_b.bias.any()
    constant = mamba_simple.Mamba(16, dt_init="constant", dt_scale=3.0)
    assert torch.equal(constant.dt_proj.weight, torch.full((32, 1), 3.0))
    assert mamba_simple.Mamba(16, dtype=torch.bfloat16)(tokens().bfloat16()).dtype == torch.bfloat16
