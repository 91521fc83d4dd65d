"""VMamba: the official names, shapes, logits and gradients, in every design and on every backend.

The expected numbers were computed with the official code (MzeroMiko/VMamba@2ed52ea, VSSM in float32 with its PyTorch
scan) from the weights and images of `helpers.vmamba_weights`.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import scanlab
from helpers.vmamba_weights import images, weights
from scanlab.contract.verify import relative_error
from scanlab.errors import ProblemError, UnknownBackendError
from scanlab.models.vmamba import FAMILIES, Variant, VMamba

LOGITS = {
    "s1": [[0.296721, -0.539233, 0.368927, 0.47932, 0.218866], [0.434294, -0.480377, 0.102981, 0.318837, 0.526552]],
    "s2": [
        [0.461856, -0.334172, -0.516161, -0.195175, 0.084181],
        [0.241041, -0.523817, -0.459905, -0.330656, 0.092468],
    ],
    "v0": [[0.018463, -0.188808, 0.225721, -0.18524, -0.046319], [0.032272, -0.198853, 0.093895, -0.103216, -0.19168]],
}
# sums of the absolute gradients of the sum of squared logits
GRADIENTS = {
    "s1": {"patch_embed.0.weight": 55.4659, "op.A_logs": 0.0540556, "op.dt_projs_bias": 0.0486897},
    "s2": {"patch_embed.0.weight": 33.1857, "op.A_logs": 0.0602354, "op.dt_projs_bias": 0.055519},
    "v0": {"patch_embed.0.weight": 29.8889, "op.A_logs": 0.127134, "op.dt_projs_bias": 0.0458635},
}
X_PROJ_GRADIENTS = {"s1": 1.26174, "s2": 1.88148, "v0": 3.53749}
BACKENDS = ("cross_scan_2d_torch", "cross_scan_2d_composed", "cross_scan_2d_native")


def small(family: Variant, **options: Any) -> VMamba:
    model = VMamba((1, 2), 16, FAMILIES[family], num_classes=5, **options).eval()
    model.load_state_dict(weights(model.state_dict()))
    return model


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("scan", [None, *BACKENDS])
def test_logits_are_the_official_ones(family, scan):
    with torch.no_grad():
        logits = small(family, scan=scan)(images())
    assert relative_error(logits, torch.tensor(LOGITS[family]).double()) < 2e-5


@pytest.mark.parametrize("family", list(FAMILIES))
def test_gradients_are_the_official_ones(family):
    model = small(family)
    model(images()).square().sum().backward()
    found = {name: parameter.grad.double().abs().sum().item() for name, parameter in model.named_parameters()}
    for name, expected in GRADIENTS[family].items():
        full = name if name in found else f"layers.0.blocks.0.{name}"
        assert found[full] == pytest.approx(expected, rel=1e-4), full
    assert found["layers.0.blocks.0.op.x_proj_weight"] == pytest.approx(X_PROJ_GRADIENTS[family], rel=1e-4)


@pytest.mark.parametrize(
    ("make", "variant", "parameters"),
    [
        (scanlab.vmamba_tiny, "s1", 30_249_064),
        (scanlab.vmamba_tiny, "s2", 30_705_832),
        (scanlab.vmamba_tiny, "v0", 22_893_448),
        (scanlab.vmamba_small, "s1", 49_012_840),
        (scanlab.vmamba_base, "s2", 88_557_800),
        (scanlab.vmamba_base, "v0", 76_254_056),
    ],
)
def test_the_released_models_have_the_official_number_of_weights(make, variant, parameters):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in make(variant).parameters()) == parameters


def test_names_and_shapes_are_the_official_ones():
    shapes = {name: tuple(each.shape) for name, each in VMamba((1, 1), 16).state_dict().items()}
    block = {
        "norm.weight": (16,),
        "op.x_proj_weight": (4, 3, 16),
        "op.A_logs": (64, 1),
        "op.Ds": (64,),
        "op.dt_projs_weight": (4, 16, 1),
        "op.dt_projs_bias": (4, 16),
        "op.out_norm.weight": (16,),
        "op.in_proj.weight": (16, 16),
        "op.conv2d.weight": (16, 1, 3, 3),
        "op.out_proj.weight": (16, 16),
        "norm2.weight": (16,),
        "mlp.fc1.weight": (64, 16),
        "mlp.fc2.bias": (16,),
    }
    assert {f"layers.0.blocks.0.{name}": shape for name, shape in block.items()}.items() <= shapes.items()
    assert shapes["patch_embed.5.weight"] == (16, 8, 3, 3)
    assert shapes["layers.0.downsample.1.weight"] == (32, 16, 3, 3)
    assert shapes["classifier.head.weight"] == (1000, 32)
    assert VMamba((1, 1), 16, FAMILIES["v0"]).state_dict()["layers.0.downsample.reduction.weight"].shape == (32, 64)


def test_checkpoints_of_older_code_load():
    model = small("v0")
    older = {}
    for name, each in model.state_dict().items():
        name = name.replace("blocks.0.norm.", "blocks.0.ln_1.").replace(".op.", ".self_attention.")
        name = name.replace("classifier.", "").replace("patch_embed.0.", "patch_embed.proj.")
        name = name.replace("patch_embed.2.", "patch_embed.norm.")
        older[name] = each[..., None, None] if name.endswith("in_proj.weight") else each
    again = VMamba((1, 2), 16, FAMILIES["v0"], num_classes=5).eval()
    assert again.load_state_dict(older).missing_keys == []
    with pytest.raises(RuntimeError, match="expected torch.Tensor"):
        again.load_state_dict(older | {"head.bias": 1.0})
    with torch.no_grad():
        assert torch.equal(again(images()), model(images()))


def test_a_fresh_model_trains_and_its_steps_start_where_the_official_ones_do():
    torch.manual_seed(0)
    model = VMamba((1, 1), 16, num_classes=5, drop_path_rate=0.5)
    stages: Any = model.layers
    step = torch.nn.functional.softplus(stages[0].blocks[0].op.dt_projs_bias)
    assert 0.0009 < step.min() < 0.01 < step.max() < 0.11
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images()), torch.tensor([1, 3]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("family", list(FAMILIES))
def test_half_precision_is_close(family):
    model = small(family)
    with torch.no_grad():
        expected = model(images())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = model(images())
        cast = copy.deepcopy(model).bfloat16()(images().bfloat16())
    for logits in (autocast, cast):
        assert logits.dtype == torch.bfloat16
        assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_the_backend_of_the_scans_may_be_assigned():
    model = small("s1", scan="cross_scan_2d_torch")
    assert model.scan == "cross_scan_2d_torch"
    with pytest.raises(ProblemError, match="scan='native' is a backend of selective_scan"):
        model.scan = "native"
    with pytest.raises(UnknownBackendError):
        small("s1", scan="cross_scan_3d")
    with pytest.raises(ProblemError, match="variant='s3': must be one of s1, s2, v0"):
        scanlab.vmamba_tiny("s3")  # type: ignore[arg-type]


def test_what_a_hook_is_shown_stays_as_it_was():
    model = small("s1")
    stages: Any = model.layers
    shown: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    for module in (stages[0].blocks[0].op.conv2d, stages[0].blocks[0].mlp.fc1):
        module.register_forward_hook(lambda module, inputs, out: shown.update({module: (out, out.clone())}))
    with torch.no_grad():
        assert relative_error(model(images()), torch.tensor(LOGITS["s1"]).double()) < 2e-5
    assert len(shown) == 2
    assert all(torch.equal(kept, then) for kept, then in shown.values())


@pytest.mark.parametrize(
    "options", [{"depths": ()}, {"depths": (0,)}, {"dim": 0}, {"drop_path_rate": 2.0}, {"family": "s1"}]
)
def test_options_that_make_no_model_are_refused(options):
    with pytest.raises(ProblemError, match=next(iter(options))):
        VMamba(**{"depths": (1,), "dim": 16, **options})
