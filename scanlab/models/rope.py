"""Rotary position embedding over a square grid of patches.

Source: hustvl/Vim@dd0358a, vim/rope.py, VisionRotaryEmbeddingFast; the idea is Su et al. 2021, RoFormer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Rope(nn.Module):
    """Rotates adjacent pairs of channels by angles that grow with a patch's row (first half) and column (second).

    `grid` is the number of patches a side and `pretrained_grid` the one that positions are scaled to. The
    tables, float32 (grid * grid, dim), are part of the official state_dict.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, dim: int, grid: int, pretrained_grid: int) -> None:
        super().__init__()
        half = dim // 2
        frequencies = 1.0 / 10000.0 ** (torch.arange(0, half, 2, dtype=torch.float32) / half)
        positions = torch.arange(grid) / grid * pretrained_grid
        angles = torch.outer(positions, frequencies).repeat_interleave(2, dim=-1)
        rows, columns = angles[:, None].expand(-1, grid, -1), angles[None].expand(grid, -1, -1)
        angles = torch.cat((rows, columns), dim=-1).flatten(0, 1)
        self.register_buffer("freqs_cos", angles.cos())
        self.register_buffer("freqs_sin", angles.sin())

    def forward(self, tokens: Tensor, flipped: bool = False) -> Tensor:
        """Rotate tokens by the angles of their positions.

        An odd length means a class token to the official code, and that it comes first: token 0 is not rotated and the
        others take the angles in order. With the class token in the middle, this skips patch 0 and gives the class
        token the angle of a patch; weights trained that way need it.

        Args:
            tokens: (batch, length, dim).
            flipped: Whether the tokens are in reversed order.

        Returns:
            The rotated tokens, in the shape, order and dtype of `tokens`.
        """
        if flipped:
            return self.forward(tokens.flip(1)).flip(1)
        skipped = tokens.shape[1] % 2
        patches = tokens[:, skipped:]
        even, odd = patches[..., 0::2], patches[..., 1::2]
        turned = torch.stack((-odd, even), dim=-1).flatten(-2)
        rotated = (patches * self.freqs_cos + turned * self.freqs_sin).to(tokens.dtype)
        return torch.cat((tokens[:, :skipped], rotated), dim=1) if skipped else rotated
