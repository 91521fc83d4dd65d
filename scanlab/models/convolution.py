"""Convolution that keeps its weight as oneDNN reads it, or multiplies patches with it."""

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
    the weight large. Where the weight is large beside the map, or patches do not overlap, the patches are multiplied
    with it instead: products are up to several times as fast there as oneDNN's convolutions. The results are those of
    `nn.Conv2d`, to rounding.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        size: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(channels, features, size, stride=stride, padding=padding, groups=groups, bias=bias)
        self._prepacked = WeightCache[Tensor]()
        self._of_patches = {channels_last: WeightCache[PrepackedWeight]() for channels_last in (False, True)}

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (batch, features, height, width) of x (batch, channels, height, width)."""
        if not self._only_computes(x):
            return super().forward(x)
        if self._has_few_patches(x):
            return self._product(x)
        return self._prepacked_convolution(x) if self._prepacks(x) else super().forward(x)

    def _only_computes(self, x: Tensor) -> bool:
        """Return whether torch would do nothing but compute with x and a weight that is held."""
        return (
            not (torch.is_grad_enabled() or is_traced())
            and x.dtype == self.weight.dtype
            and x.dim() == 4
            and x.numel() > 0
            and is_plain_layer(self, (Convolution,))
            and is_plain(x, self.weight, self.bias)
        )

    def _has_few_patches(self, x: Tensor) -> bool:
        """Return whether one product can do it: no groups, and patches no larger than x or PATCHES weights."""
        batch, _, height, width = x.shape
        positions = batch * (height // self.stride[0]) * (width // self.stride[1])
        patches = positions * self.weight[0].numel()
        return self.groups == 1 and patches <= max(x.numel(), PATCHES * self.weight.numel())

    def _product(self, x: Tensor) -> Tensor:
        """Return the convolution as the product of the patches of x with the weight, in the order x lies in memory."""
        (high, wide), (down, right) = self.kernel_size, self.stride
        above, before = (int(each) for each in self.padding)
        padded = F.pad(x, (before, before, above, above)) if above or before else x
        windows = padded.unfold(2, high, down).unfold(3, wide, right)  # (batch, channels, rows, columns, high, wide)
        channels_last = x.stride(1) == 1
        patches = windows.permute(0, 2, 3, *((4, 5, 1) if channels_last else (1, 4, 5))).flatten(3)

        def make() -> PrepackedWeight:
            weight = self.weight.permute(0, 2, 3, 1) if channels_last else self.weight
            return PrepackedWeight(weight.flatten(1))

        return linear(patches, self._of_patches[channels_last](make, self.weight), self.bias).permute(0, 3, 1, 2)

    def _prepacks(self, x: Tensor) -> bool:
        return (
            x.dtype == torch.float32
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        )

    def _prepacked_convolution(self, x: Tensor) -> Tensor:
        layout = (self.padding, self.stride, self.dilation, self.groups)
        ops = torch.ops.mkldnn
        packed = self._prepacked(lambda: ops._reorder_convolution_weight(self.weight, *layout), self.weight)
        out: Tensor = ops._convolution_pointwise.default(x, packed, self.bias, *layout, "none", [], "")
        return out
