"""Patch embedding: images to sequences of patches."""

from __future__ import annotations

import math

from torch import Tensor, nn

from scanlab.errors import ProblemError
from scanlab.models.convolution import Convolution

LECUN_TRUNCATION = 0.87962566103423978  # the std of a unit normal cut at +-2, which the official code divides by


class PatchEmbed(nn.Module):
    """Cuts images into patches, overlapping where stride < patch_size, and projects each to embed_dim channels."""

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: tuple[int, int],
        stride: int,
        channels: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        if stride < 1 or patch_size[0] > img_size[0] or patch_size[1] > img_size[1]:
            raise ProblemError(
                f"img_size={img_size}, patch_size={patch_size}, stride={stride}: an image must hold a patch,"
                " and stride be at least 1."
            )
        self.img_size = img_size
        self.grid_size = tuple((size - patch) // stride + 1 for size, patch in zip(img_size, patch_size, strict=True))
        self.proj = Convolution(channels, embed_dim, patch_size, stride=stride)
        nn.init.trunc_normal_(self.proj.weight, std=(channels * math.prod(patch_size)) ** -0.5 / LECUN_TRUNCATION)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    @property
    def num_patches(self) -> int:
        """Number of patches of an image."""
        return math.prod(self.grid_size)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embedded patches, row by row.

        Shape:
            images (batch, channels, *img_size) -> (batch, patches, embed_dim).
        """
        expected = (self.proj.in_channels, *self.img_size)
        if images.dim() != 4 or images.shape[1:] != expected:
            raise ProblemError(
                f"images are {tuple(images.shape)}: this model takes (batch, {', '.join(map(str, expected))});"
                " build it with another img_size, or resize the images."
            )
        grid: Tensor = self.proj(images.to(self.proj.weight.dtype))
        return grid.flatten(2).mT.contiguous()
