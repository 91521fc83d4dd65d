"""VMamba, weight-compatible with the official classification models.

An image becomes a feature map that four stages of blocks halve in size and double in width. Each block scans the map
along its rows and columns in both directions. Names and shapes of the `state_dict` are the official ones.

Source: Liu et al. 2024, VMamba: Visual State Space Model; MzeroMiko/VMamba@2ed52ea, classification/models/vmamba.py,
VSSM, and classification/configs/vssm.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanlab.contract import registry
from scanlab.errors import ProblemError
from scanlab.models.convolution import Convolution
from scanlab.models.cross_scan_block import CrossScanBlock, CrossScanMixer, MixerOptions
from scanlab.models.options import check_options

Variant = Literal["s1", "s2", "v0"]


@dataclass(frozen=True)
class Family:
    """Design of the models of one official release.

    Args:
        mixer: Options of the mixers.
        mlp_ratio: Width of the MLPs relative to that of the model; 0 for none.
        overlapping: Patches of the stem and of each downsampling overlap (convolutions of 3 x 3).
    """

    mixer: MixerOptions
    mlp_ratio: float
    overlapping: bool


# The official configurations by the name that their checkpoints have: vssm1_*_s1l*, vssm1_*_s2l* (first called vssm1_*)
# and vssm_*.
FAMILIES: dict[Variant, Family] = {
    "s1": Family(MixerOptions(state=1, expand=1.0), mlp_ratio=4.0, overlapping=True),
    "s2": Family(MixerOptions(state=1, expand=2.0), mlp_ratio=4.0, overlapping=True),
    "v0": Family(MixerOptions(state=16, expand=2.0, gated=True, conv_bias=True), mlp_ratio=0.0, overlapping=False),
}

# Names of weights in older checkpoints.
RENAMED = (
    (re.compile(r"^patch_embed\.proj\."), "patch_embed.0."),
    (re.compile(r"^patch_embed\.norm\."), "patch_embed.2."),
    (re.compile(r"\.ln_1\."), ".norm."),
    (re.compile(r"\.self_attention\."), ".op."),
    (re.compile(r"^(norm|head)\."), r"classifier.\1."),
)


class ChannelsLast(nn.Module):
    """Axes (batch, channels, height, width) -> (batch, height, width, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a view of x."""
        return x.permute(0, 2, 3, 1)


class ChannelsFirst(nn.Module):
    """Axes (batch, height, width, channels) -> (batch, channels, height, width)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a view of x."""
        return x.permute(0, 3, 1, 2)


class PatchMerging(nn.Module):
    """Squares of 2 x 2 positions -> one position of twice the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the merged map of x (batch, height, width, dim); odd sizes are padded with zeros."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        out: Tensor = self.reduction(self.norm(torch.cat(corners, dim=-1)))
        return out


class VMamba(nn.Module):
    """VMamba for classification.

    Args:
        depths: Blocks of each stage.
        dim: Width of the first stage.
        family: Design of the model.
        num_classes: Outputs of the head.
        channels: Channels of an image.
        drop_path_rate: Probability of dropping the branches of the last block in training; rises from 0.
        scan: Backend of the scans, such as "cross_scan_2d_torch"; the machine's choice where None.

    Raises:
        ProblemError: Options make no model, or `scan` is a backend of another op.
        UnknownBackendError: There is no backend called `scan`.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 8, 2),
        dim: int = 96,
        family: Family = FAMILIES["s1"],
        *,
        num_classes: int = 1000,
        channels: int = 3,
        drop_path_rate: float = 0.2,
        scan: str | None = None,
    ) -> None:
        super().__init__()
        check_options(
            {"depths": depths, "dim": dim, "channels": channels},
            {"num_classes": num_classes},
            {"drop_path_rate": drop_path_rate},
        )
        if not isinstance(family, Family):
            raise ProblemError(f"family={family!r}: must be one of FAMILIES, such as FAMILIES['s1'].")
        widths = [dim * 2**stage for stage in range(len(depths))]
        last = max(1, sum(depths) - 1)
        drops = iter(drop_path_rate * index / last for index in range(sum(depths)))
        self.patch_embed = _stem(channels, dim, family.overlapping)
        self.layers = nn.ModuleList()
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = (CrossScanBlock(width, family.mixer, family.mlp_ratio, next(drops)) for _ in range(depth))
            is_last = stage == len(depths) - 1
            downsample = nn.Identity() if is_last else _downsample(width, family.overlapping)
            self.layers.append(
                nn.Sequential(OrderedDict[str, nn.Module](blocks=nn.Sequential(*blocks), downsample=downsample))
            )
        self.classifier = nn.ModuleDict({"norm": nn.LayerNorm(widths[-1]), "head": nn.Linear(widths[-1], num_classes)})
        self.apply(_initialise)
        self.register_load_state_dict_pre_hook(_accept_older_names)  # type: ignore[no-untyped-call]  # torch's
        self.scan = scan

    @property
    def scan(self) -> str | None:
        """Backend of the scans, or None for the machine's choice; may be assigned."""
        return self._scan

    @scan.setter
    def scan(self, scan: str | None) -> None:
        if scan is not None:
            backend, _ = registry.parse_selection(scan)
            if backend.op != "cross_scan_2d":
                raise ProblemError(f"scan={scan!r} is a backend of {backend.op}: must be one of cross_scan_2d.")
        self._scan = scan
        for module in self.modules():
            if isinstance(module, CrossScanMixer):
                module.scan = scan

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (batch, num_classes) of images (batch, channels, height, width) of any size."""
        x = self.patch_embed(images.contiguous(memory_format=torch.channels_last))
        for layer in self.layers:
            x = layer(x)
        pooled = self.classifier["norm"](x).mean(dim=(1, 2))
        logits: Tensor = self.classifier["head"](pooled)
        return logits


def _stem(channels: int, dim: int, overlapping: bool) -> nn.Sequential:
    """Return the layers from an image to a map of a quarter of its height and width."""
    if not overlapping:
        return nn.Sequential(Convolution(channels, dim, 4, stride=4), ChannelsLast(), nn.LayerNorm(dim))
    return nn.Sequential(
        Convolution(channels, dim // 2, 3, stride=2, padding=1),
        ChannelsLast(),
        nn.LayerNorm(dim // 2),
        ChannelsFirst(),
        nn.GELU(),
        Convolution(dim // 2, dim, 3, stride=2, padding=1),
        ChannelsLast(),
        nn.LayerNorm(dim),
    )


def _downsample(dim: int, overlapping: bool) -> nn.Module:
    """Return the layers that halve a map and double its width."""
    if not overlapping:
        return PatchMerging(dim)
    return nn.Sequential(
        ChannelsFirst(), Convolution(dim, 2 * dim, 3, stride=2, padding=1), ChannelsLast(), nn.LayerNorm(2 * dim)
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _accept_older_names(module: nn.Module, weights: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the weights of older checkpoints, and view those of 1 x 1 convolutions as those of linear layers."""
    own = module.state_dict()
    for name in [name for name in weights if name.startswith(prefix)]:
        renamed = name.removeprefix(prefix)
        for pattern, replacement in RENAMED:
            renamed = pattern.sub(replacement, renamed)
        weight = weights.pop(name)
        if renamed in own and isinstance(weight, Tensor) and weight.shape == (*own[renamed].shape, 1, 1):
            weight = weight.flatten(1)
        weights[prefix + renamed] = weight


def _make(
    variant: Variant, depths: dict[Variant, int], dim: int, drop_path_rate: float, scan: str | None, num_classes: int
) -> VMamba:
    if variant not in FAMILIES:
        raise ProblemError(f"variant={variant!r}: must be one of {', '.join(FAMILIES)}.")
    return VMamba(
        (2, 2, depths[variant], 2),
        dim,
        FAMILIES[variant],
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        scan=scan,
    )


def vmamba_tiny(variant: Variant = "s1", *, scan: str | None = None, num_classes: int = 1000) -> VMamba:
    """Return VMamba-T: [s1l8] with 30 million weights, "s2" for [s2l5], "v0" for the first release.

    Raises:
        ProblemError: There is no such variant, or `scan` is a backend of another op.
        UnknownBackendError: There is no backend called `scan`.
    """
    return _make(variant, {"s1": 8, "s2": 5, "v0": 9}, 96, 0.2, scan, num_classes)


def vmamba_small(variant: Variant = "s1", *, scan: str | None = None, num_classes: int = 1000) -> VMamba:
    """Return VMamba-S: [s1l20] with 49 million weights, "s2" for [s2l15], "v0" for the first release.

    Raises:
        ProblemError: There is no such variant, or `scan` is a backend of another op.
        UnknownBackendError: There is no backend called `scan`.
    """
    return _make(variant, {"s1": 20, "s2": 15, "v0": 27}, 96, 0.3, scan, num_classes)


def vmamba_base(variant: Variant = "s1", *, scan: str | None = None, num_classes: int = 1000) -> VMamba:
    """Return VMamba-B: [s1l20] with 87 million weights, "s2" for [s2l15], "v0" for the first release.

    Raises:
        ProblemError: There is no such variant, or `scan` is a backend of another op.
        UnknownBackendError: There is no backend called `scan`.
    """
    return _make(variant, {"s1": 20, "s2": 15, "v0": 27}, 128, 0.6 if variant != "s1" else 0.5, scan, num_classes)
