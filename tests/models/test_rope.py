"""Rotary tables against the official ones, and what rotating does to class tokens."""

import pytest
import torch

from helpers.official import EXTRA
from scanlab.models.rope import Rope


@pytest.mark.parametrize(("case", "grid", "every"), [("ft4_pt14_dim24", 4, 1), ("ft14_pt14_dim96", 14, 9)])
def test_tables_match_the_official_ones(case, grid, every):
    cos, sin = (torch.from_numpy(EXTRA[f"rope/{case}/freqs_{name}"]) for name in ("cos", "sin"))
    rope = Rope(cos.shape[1], grid, pretrained_grid=14)
    torch.testing.assert_close(rope.freqs_cos[::every], cos, rtol=0, atol=1e-6)
    torch.testing.assert_close(rope.freqs_sin[::every], sin, rtol=0, atol=1e-6)


def test_an_odd_sequence_leaves_its_first_token_and_turns_the_others_in_order():
    rope = Rope(8, 2, pretrained_grid=2)
    tokens = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    rotated = rope(tokens)
    assert torch.equal(rotated[:, 0], tokens[:, 0])
    torch.testing.assert_close(rotated[:, 1:], rope(tokens[:, 1:]))
    torch.testing.assert_close(rotated.norm(dim=-1), tokens.norm(dim=-1))


def test_a_reversed_sequence_is_turned_by_the_angles_of_its_patches():
    rope = Rope(8, 2, pretrained_grid=2)
    tokens = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rope(tokens.flip(1), flipped=True), rope(tokens).flip(1))


def test_rotating_keeps_the_dtype():
    assert Rope(8, 2, pretrained_grid=2)(torch.ones(1, 4, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
