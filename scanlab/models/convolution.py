"""Convolution of channel-last feature maps that keeps its weight as oneDNN reads it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scanlab.models.plain_layers import is_plain_layer
from scanlab.runtime.ops import WeightCache
from scanlab.runtime.traced import is_traced
from scanlab_kernels.linear.weights import is_plain


class Convolution(nn.Conv2d):
    """A convolution that prepacks its weight in inference.

    torch's own lays out the weight anew at every call, which takes longer than the products where a map is small and
    the weight large. The results are those of `nn.Conv2d`.
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

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (batch, features, height, width) of x (batch, channels, height, width)."""
        if not self._prepacks(x):
            return super().forward(x)
        layout = (self.padding, self.stride, self.dilation, self.groups)
        ops = torch.ops.mkldnn
        packed = self._prepacked(lambda: ops._reorder_convolution_weight(self.weight, *layout), self.weight)
        out: Tensor = ops._convolution_pointwise.default(x, packed, self.bias, *layout, "none", [], "")
        return out

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
