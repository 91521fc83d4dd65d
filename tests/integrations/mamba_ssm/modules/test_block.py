"""Residual blocks of the drop-in, with the arguments of mamba_ssm 1.x and 2.x, and the MLP of 2.x."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanlab.errors import ProblemError
from scanlab.integrations.mamba_ssm.modules import block, mamba_simple
from scanlab.integrations.mamba_ssm.modules.mamba_simple import Mamba
from scanlab.integrations.mamba_ssm.modules.mlp import GatedMLP
from scanlab.integrations.mamba_ssm.ops.triton.layer_norm import RMSNorm

pytestmark = pytest.mark.usefixtures("two_phase_scan")


def tokens() -> Tensor:
    return torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("norm", [nn.LayerNorm, RMSNorm])
def test_a_block_adds_normalises_and_mixes(fused, norm):
    made = mamba_simple.Block(16, Mamba, norm, fused_add_norm=fused, residual_in_fp32=True)
    x = tokens()
    hidden, residual = made(x)
    assert torch.equal(residual, x)
    torch.testing.assert_close(hidden, made.mixer(made.norm(x)))
    _, total = made(hidden, residual)
    torch.testing.assert_close(total, hidden + residual)
    assert len(made.allocate_inference_cache(2, 9)) == 2


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("norm", [nn.LayerNorm, RMSNorm])
def test_a_block_with_an_mlp_adds_and_normalises_twice(fused, norm):
    made = block.Block(16, Mamba, functools.partial(GatedMLP, hidden_features=32), norm, fused_add_norm=fused)
    x = tokens()
    hidden, residual = made(x, 2 * x)
    mixed = made.mixer(made.norm(3 * x))
    torch.testing.assert_close(residual, mixed + 3 * x)
    torch.testing.assert_close(hidden, made.mlp(made.norm2(mixed + 3 * x)))


def test_the_arguments_of_both_releases_make_the_same_block():
    old = mamba_simple.Block(16, Mamba, nn.LayerNorm, False, True)
    new = block.Block(16, Mamba, nn.Identity, nn.LayerNorm, False, True)
    assert old.state_dict().keys() == new.state_dict().keys()
    assert isinstance(old, block.Block)
    new.load_state_dict(old.state_dict())
    for ours, theirs in zip(old(tokens()), new(tokens()), strict=True):
        assert torch.equal(ours, theirs)


def test_a_block_refuses_to_fuse_a_norm_that_the_op_does_not_compute():
    with pytest.raises(ProblemError, match="fused_add_norm with Identity"):
        block.Block(16, Mamba, nn.Identity, nn.Identity, fused_add_norm=True)


def test_the_mlp_is_gated_and_its_width_rounded_up():
    mlp = GatedMLP(6, hidden_features=9, out_features=5, multiple_of=4, bias=True)
    assert {name: tuple(each.shape) for name, each in mlp.named_parameters()} == {
        "fc1.weight": (24, 6),
        "fc1.bias": (24,),
        "fc2.weight": (5, 12),
        "fc2.bias": (5,),
    }
    x = torch.randn(3, 6)
    values, gate = mlp.fc1(x).chunk(2, -1)
    torch.testing.assert_close(mlp(x), mlp.fc2(values * F.silu(gate)))
    assert GatedMLP(12).fc2.weight.shape == (12, 128)
