"""Convolution of channel-last feature maps that keeps its weight as oneDNN reads it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanlab.models.plain_layers import is_plain_layer
from scanlab.runtime.ops import PrepackedWeight, WeightCache, linear
from scanlab.runtime.traced import is_traced
from scanlab_kernels.linear.weights import is_plain

PATCHES = 8  # bounds the memory of patches, in sizes of the weight


class Convolution(nn.Conv2d):
    """A convolution that prepacks its weight in inference.

    torch's own lays out the weight anew at every call, which takes longer than the products where a map is small and
    the weight large. Where the weight is large beside the map, the patches are multiplied with it instead: products are
    several times as fast there as oneDNN's convolutions. The results are those of `nn.Conv2d`, to rounding.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(channels, features, size, stride=stride, padding=padding, groups=groups, bias=bias)
        self._prepacked = WeightCache[Tensor]()
        self._of_patches = WeightCache[PrepackedWeight]()

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (batch, features, height, width) of x (batch, channels, height, width)."""
        if not self._prepacks(x):
            return super().forward(x)
        if self._has_few_positions(x):
            return self._product(x)
        layout = (self.padding, self.stride, self.dilation, self.groups)
        ops = torch.ops.mkldnn
        packed = self._prepacked(lambda: ops._reorder_convolution_weight(self.weight, *layout), self.weight)
        out: Tensor = ops._convolution_pointwise.default(x, packed, self.bias, *layout, "none", [], "")
        return out

    def _has_few_positions(self, x: Tensor) -> bool:
        """Return whether x has patches at most PATCHES times as large as a weight that is not in groups."""
        batch, _, height, width = x.shape
        positions = batch * (height // self.stride[0]) * (width // self.stride[1])
        return self.groups == 1 and positions <= PATCHES * self.out_channels

    def _product(self, x: Tensor) -> Tensor:
        """Return the convolution as the product of the patches of x with the weight."""
        (high, wide), (down, right) = self.kernel_size, self.stride
        above, before = (int(each) for each in self.padding)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, before, before, above, above))
        patches = padded.unfold(1, high, down).unfold(2, wide, right).permute(0, 1, 2, 4, 5, 3).flatten(3)
        weight = self._of_patches(lambda: PrepackedWeight(self.weight.permute(0, 2, 3, 1).flatten(1)), self.weight)
        return linear(patches, weight, self.bias).permute(0, 3, 1, 2)

    def _prepacks(self, x: Tensor) -> bool:
        return (
            not (torch.is_grad_enabled() or is_traced())
            and x.dtype == self.weight.dtype == torch.float32
            and x.numel() > 0
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
            and is_plain_layer(self, (Convolution,))
            and is_plain(x, self.weight, self.bias)
        )
