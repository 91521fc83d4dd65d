"""A small trained Vision Mamba that classifies handwritten digits, and the digits held out for testing.

The pictures are scikit-learn's: 1,797 scanned digits of 8 x 8 pixels (E. Alpaydin and C. Kaynak 1998, Optical
Recognition of Handwritten Digits, UCI). The weights are those that experiments/train_digits.py trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scanlab.extras import require
from scanlab.models.checkpoints import load_weights, read_weights
from scanlab.models.vision_mamba import VisionMamba

if TYPE_CHECKING:
    from scanlab.runtime.dispatch import Scan

WEIGHTS = Path(__file__).with_name("digits.safetensors")
HELD_OUT = 0.2  # share of the digits, equal for every class
SPLIT_SEED = 1  # the split 0 served to choose the shape of the model and the length of its training


class Digits(NamedTuple):
    """images (count, 1, 8, 8) float32, -1 paper to 1 ink; labels (count,) int64, 0 to 9."""

    images: Tensor
    labels: Tensor


def untrained_digits_model(scan: Scan | str | None = None) -> VisionMamba:
    """Return the model with fresh weights: 4 layers over 7 x 7 overlapping patches, whose mean is classified.

    There is no class token: on so few pictures one learns several times as slowly as the mean.
    """
    return VisionMamba(
        img_size=8,
        patch_size=2,
        stride=1,
        depth=4,
        embed_dim=48,
        channels=1,
        num_classes=10,
        drop_path_rate=0.0,
        final_pool_type="mean",
        if_cls_token=False,
        scan=scan,
    )


def digits_model(scan: Scan | str | None = None) -> VisionMamba:
    """Return the trained model, in evaluation mode; `scan` as for VisionMamba."""
    model = untrained_digits_model(scan)
    load_weights(model, read_weights(WEIGHTS))
    return model.eval()


def digits_split() -> tuple[Digits, Digits]:
    """Return the digits to train on (1,437) and those held out (360), always the same; needs scikit-learn."""
    require("lab", "sklearn")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels, labels, test_size=HELD_OUT, random_state=SPLIT_SEED, stratify=labels)
    train_pixels, test_pixels = (torch.from_numpy(part).float().reshape(-1, 1, 8, 8) / 8.0 - 1.0 for part in parts[:2])
    train_labels, test_labels = (torch.from_numpy(part).long() for part in parts[2:])
    return Digits(train_pixels, train_labels), Digits(test_pixels, test_labels)


def digits_test_set() -> Digits:
    """Return the 360 digits that were held out from training."""
    return digits_split()[1]
