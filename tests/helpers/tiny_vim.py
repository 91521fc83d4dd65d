"""A Vision Mamba small enough to be exported in a test, with weights that use its whole arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scanlab.models.capture import trained_like_
from scanlab.models.checkpoints import Published, save_weights
from scanlab.models.vision_mamba import VisionMamba

WIDTH, TOKENS = 32, 17
PUBLISHED = Published("nowhere/tiny", "tiny.pth", WIDTH, TOKENS)


def tiny_vim(img_size=32, num_classes=1000, scan=None) -> VisionMamba:
    """Depth 1; a released model in all but its sizes."""
    options: dict[str, Any] = {"patch_size": 8, "stride": 8, "depth": 1, "embed_dim": WIDTH, "final_pool_type": "mean"}
    return VisionMamba(img_size=img_size, num_classes=num_classes, scan=scan, **options)


def trained_tiny_vim() -> VisionMamba:
    return trained_like_(tiny_vim()).eval()


def write_weights(path: Path) -> Path:
    save_weights(trained_tiny_vim(), path)
    return path
