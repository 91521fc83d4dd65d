"""Vision Mamba: initialisation as the official one, every option against its plain restatement, and what is refused."""

import copy
import json
import math
import random
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import plain_vim
from helpers.official import GOLDEN, REFERENCE, TOLERANCE
from scanlab.contract.problem import ScanOutput
from scanlab.errors import ProblemError, UnknownBackendError
from scanlab.models.block import DropPath
from scanlab.models.capture import trained_like_
from scanlab.models.vision_mamba import RELEASED, VisionMamba

SMALL: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 8,
    "stride": 8,
    "embed_dim": 16,
    "depth": 3,
    "num_classes": 5,
    "d_state": 4,
}
OPTIONS = [
    {},
    {"stride": 4},
    {"img_size": (24, 40)},
    {"patch_size": (8, 16)},
    {"channels": 1},
    {"num_classes": 0},
    {"norm_epsilon": 1e-2},
    {"rms_norm": False},
    {"rms_norm": False, "fused_add_norm": False},
    {"residual_in_fp32": False},
    {"if_abs_pos_embed": False},
    {"if_cls_token": False, "final_pool_type": "none"},
    {"if_cls_token": False, "final_pool_type": "mean"},
    {"if_cls_token": False, "final_pool_type": "max"},
    {"if_cls_token": False, "final_pool_type": "all"},
    {"final_pool_type": "max"},
    {"use_middle_cls_token": False},
    {"use_double_cls_token": True},
    {"if_rope": True},
    {"if_rope": True, "if_rope_residual": True, "pt_hw_seq_len": 5},
    {"if_rope": True, "if_rope_residual": True, "if_cls_token": False, "final_pool_type": "mean"},
    {"flip_img_sequences_ratio": 2.0},
    {"flip_img_sequences_ratio": 2.0, "use_middle_cls_token": False},
    {"flip_img_sequences_ratio": 2.0, "if_rope": True, "if_rope_residual": True},
    {"if_bidirectional": True},
    {"if_bidirectional": True, "depth": 4, "if_rope": True, "if_rope_residual": True, "flip_img_sequences_ratio": 2.0},
    {"bimamba_type": "v1"},
    {"if_bimamba": True, "init_layer_scale": 0.1, "ssm_cfg": {"bias": True}},
    {"bimamba_type": "none"},
    {"if_divide_out": False},
    {"init_layer_scale": 0.1},
    {"ssm_cfg": {"d_conv": 3, "expand": 1, "dt_rank": 3, "bias": True, "conv_bias": False}},
    {"ssm_cfg": {"d_conv": 1, "expand": 1.5, "use_fast_path": False}},
    {"ft_seq_len": 7, "drop_rate": 0.5},
]


def image_shape(options):
    size = options["img_size"]
    return options.get("channels", 3), *((size, size) if isinstance(size, int) else size)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_does_what_its_plain_restatement_does(options):
    options = SMALL | options
    model = trained_like_(VisionMamba(**options, scan=REFERENCE)).eval()
    images = torch.randn(2, *image_shape(options), generator=torch.Generator().manual_seed(1))
    weights = {name: value.double().requires_grad_() for name, value in model.state_dict().items()}
    outputs = model(images)
    expected = torch.stack([plain_vim.vim(image, weights, options) for image in images])
    torch.testing.assert_close(outputs.double(), expected, rtol=0, atol=TOLERANCE)
    seed = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.sum(outputs * seed).backward()
    torch.sum(expected * seed).backward()
    for name, parameter in model.named_parameters():
        gradient = weights[name].grad
        if gradient is None:
            assert parameter.grad is None, name  # the odd layer that no pair uses
        else:
            atol = TOLERANCE * gradient.abs().max().item()
            torch.testing.assert_close(
                parameter.grad.double(), gradient, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )


def small(**options):
    return VisionMamba(**SMALL | {"scan": REFERENCE} | options)


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def test_fresh_weights_are_distributed_as_the_official_ones():
    torch.manual_seed(0)
    model = RELEASED["vim_tiny"](scan=REFERENCE)
    official = json.loads((GOLDEN / "init_stats_tiny.json").read_text())
    state = model.state_dict()
    compared = [name for name in official if name in state]
    assert len(compared) > 30
    for name in compared:
        values, expected = state[name], official[name]
        spread = expected["std"] / math.sqrt(values.numel())
        assert values.mean().item() == pytest.approx(expected["mean"], abs=8 * spread + 1e-6), name
        assert values.std(correction=0).item() == pytest.approx(expected["std"], rel=0.08, abs=1e-7), name
        assert values.max().item() == pytest.approx(expected["max"], rel=0.35, abs=1e-7), name
    for direction in ("dt_proj", "dt_proj_b"):
        steps = torch.nn.functional.softplus(state[f"layers.0.mixer.{direction}.bias"])
        low, high = official[f"softplus(layers.0.mixer.{direction}.bias)"]
        assert steps.min() >= 0.9 * low
        assert steps.max() <= 1.1 * high


def test_initialisation_options_are_heard():
    model = small(init_layer_scale=0.25, ssm_cfg={"dt_init": "constant", "dt_scale": 2.0, "dt_min": 0.5, "dt_max": 0.5})
    mixer = model.layers[0].mixer
    assert torch.all(mixer.gamma == 0.25)
    assert torch.all(mixer.dt_proj.weight == 2.0)  # the rank is 1
    torch.testing.assert_close(torch.nn.functional.softplus(mixer.dt_proj.bias), torch.full((32,), 0.5))
    floored = small(ssm_cfg={"dt_min": 1e-9, "dt_max": 1e-8, "dt_init_floor": 0.3}).layers[0].mixer
    torch.testing.assert_close(torch.nn.functional.softplus(floored.dt_proj.bias), torch.full((32,), 0.3))
    bound = 32**-0.5
    for cfg, scale in (
        (None, 3**-0.5),
        ({"n_residuals_per_layer": 4}, 12**-0.5),
        ({"rescale_prenorm_residual": False}, 1.0),
    ):
        largest = small(initializer_cfg=cfg).layers[0].mixer.out_proj.weight.abs().max().item()
        assert 0.9 * bound * scale < largest <= bound * scale * (1 + 1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bimamba_type": "v3"}, "v3.*v2, v1, none"),
        ({"final_pool_type": "median"}, "median.*mean"),
        ({"img_size": 4}, "must hold a patch"),
        ({"stride": 0}, "at least 1"),
        ({"ssm_cfg": {"d_state": 8}}, "d_state.*d_conv"),
        ({"ssm_cfg": {"dt_init": "zero"}}, "zero.*random"),
        ({"initializer_cfg": {"range": 1.0}}, "range.*n_residuals_per_layer"),
        ({"if_rope": True, "img_size": (16, 16)}, "one number"),
        ({"if_rope": True, "embed_dim": 18}, "multiple of 4"),
        ({"if_rope": True, "stride": 4}, "stride must equal patch_size"),
        ({"if_rope": True, "use_double_cls_token": True}, "one class token or none"),
        ({"if_rope": True, "img_size": 24}, "the grid be even"),
        ({"img_size": "x"}, "img_size='x': must be a whole number of at least 1"),
        ({"img_size": (16,)}, "must be one number or"),
        ({"patch_size": 0}, "patch_size=0: must be a whole number of at least 1"),
        ({"depth": -1}, "depth=-1: must be a whole number of at least 0"),
        ({"drop_rate": math.nan}, "drop_rate=nan: must be a probability"),
    ],
)
def test_options_that_make_no_model_are_refused(options, said):
    with pytest.raises(ProblemError, match=said):
        small(**options)


def test_misspelt_options_are_refused():
    with pytest.raises(TypeError, match="if_devide_out"):
        small(if_devide_out=True)
    with pytest.raises(TypeError, match="depth"):
        RELEASED["vim_tiny"](depth=2)


@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (2, 1, 16, 16), (3, 16, 16)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ProblemError, match=r"takes \(batch, 3, 16, 16\)"):
        small()(torch.zeros(shape))


def test_the_scan_is_this_machines_choice_a_name_or_a_callable():
    from scanlab.runtime import dispatch

    assert VisionMamba(**SMALL).scan is dispatch.scan
    assert VisionMamba(**SMALL, scan="reference").scan is dispatch.dispatcher("reference")
    assert small(scan=recorded).scan is recorded
    model = small(scan=recorded)
    model.scan = "reference"
    assert model.scan is dispatch.dispatcher("reference")
    with pytest.raises(UnknownBackendError, match="fastest"):
        VisionMamba(**SMALL, scan="fastest")


def test_models_are_copied_and_pickled_with_their_scan(tmp_path):
    model = small(scan="reference").eval()
    torch.save(model, tmp_path / "model.pt")
    with torch.no_grad():
        expected = model(IMAGES)
        for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
            assert other.scan is model.scan
            assert torch.equal(other(IMAGES), expected)


def recorded(*inputs, delta_softplus=True, direction="forward"):
    raise AssertionError("never called")


def test_the_scan_gets_dim_last_views_and_both_directions_in_one_call():
    calls = []
    reference = REFERENCE

    def scan(*inputs, delta_softplus=True, direction="forward"):
        calls.append((inputs, delta_softplus, direction))
        return reference(*inputs, delta_softplus=delta_softplus, direction=direction)

    with torch.no_grad():
        small(scan=scan)(IMAGES)
    assert len(calls) == SMALL["depth"]
    for inputs, softplus, direction in calls:
        assert (softplus, direction, len(inputs)) == (True, "bidirectional", 2)
        for each in inputs:
            for name in ("u", "delta", "z"):
                tensor = getattr(each, name)
                assert tensor.stride(1) == 1, name
            assert each.B.stride(1) == each.C.stride(1) == 1
            assert each.B.untyped_storage().data_ptr() == each.C.untyped_storage().data_ptr()


def test_feature_map_puts_patches_where_they_were():
    model = small(stride=4).eval()
    outputs = []
    model.layers[-1].register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    with torch.no_grad():
        features = model.feature_map(IMAGES)
        ((hidden, residual),) = outputs
        encoded = model.norm_f(hidden + residual)
    assert features.shape == (2, 16, 3, 3)
    for row, column in ((0, 0), (1, 0), (1, 1), (2, 2)):
        patch = 3 * row + column
        token = encoded[:, patch if patch < 4 else patch + 1]  # the class token is in the middle, number 4
        torch.testing.assert_close(features[:, :, row, column], token)


def test_random_class_position_and_token_order_follow_the_class_token():
    model = trained_like_(small(use_middle_cls_token=False)).eval()
    embedded, places = [], set()
    model.pos_drop.register_forward_hook(lambda layer, inputs, tokens: embedded.append(tokens))
    for seed in range(12):
        random.seed(seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            features = model(IMAGES, True, if_random_cls_token_position=True, if_random_token_rank=True)
        distances = (embedded.pop() - model.pos_embed - model.cls_token).abs().amax((0, 2))
        places.add(int(distances.argmin()))
        assert distances.min() < 1e-6
        assert features.shape == (2, 16)
    assert len(places) > 2


def test_dropped_paths_are_whole_samples_and_keep_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    kept = drop(torch.ones(4000, 3, 2))
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 4 / 3]))
    assert torch.all(kept == kept[:, :1, :1])
    assert kept.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(kept), kept)


def test_drop_path_rates_rise_one_layer_late():
    model = small(depth=5, drop_path_rate=0.4)
    rates = [layer.drop_path.rate for layer in model.layers]
    assert rates == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.3])
    assert model.drop_path.rate == 0.4


def test_weights_are_cast_but_for_the_recurrence():
    model = small(dtype=torch.bfloat16, scan=REFERENCE)
    kept = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert kept == {f"layers.{i}.mixer.{leaf}" for i in range(3) for leaf in ("A_log", "A_b_log", "D", "D_b")}
    wide = trained_like_(small(dtype=torch.float64)).eval()
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float64}
    narrow = trained_like_(small(dtype=torch.bfloat16)).eval()
    with torch.no_grad():
        exact, rounded = wide(IMAGES), narrow(IMAGES)
    assert exact.dtype == torch.float64
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), exact, rtol=0, atol=0.1 * exact.abs().max().item())


def test_training_works_under_autocast():
    model = small().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(IMAGES).square().mean()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


class Allocated(TorchDispatchMode):
    """Counts the elements of everything that is computed, and of the largest tensor."""

    total = 0
    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            elements = tensor.numel() if isinstance(tensor, torch.Tensor) else 0
            self.total += elements
            self.largest = max(self.largest, elements)
        return result


def test_memory_grows_linearly_with_the_number_of_tokens():
    counts = []
    for size in (64, 128, 256):
        model = small(
            img_size=size, d_state=64, scan=lambda forward, reverse, direction: ScanOutput(forward.u, forward.A)
        ).eval()
        with torch.no_grad(), Allocated() as allocated:
            model(torch.zeros(1, 3, size, size))
        tokens = (size // 8) ** 2 + 1
        counts.append(allocated.total / tokens)
        # nothing is larger than what x_proj makes, 1 + 2 x 64 columns: no state for each channel and token
        assert allocated.largest <= max(129 * tokens, 3 * size**2)
    assert counts[2] <= counts[1] <= counts[0]


def test_no_weight_decay_names_the_official_parameters():
    assert small().no_weight_decay() == {"pos_embed", "cls_token", "dist_token", "cls_token_head", "cls_token_tail"}
