"""Classification of pictures in batches; a picture that cannot be read is reported and does not stop the others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from scanlab.errors import InputError
from scanlab.models.imagenet import CLASSES
from scanlab.models.images import open_image, prepare
from scanlab.models.vision_mamba import VisionMamba


@dataclass(frozen=True)
class Classified:
    """One picture's most probable classes with their probabilities, or the reason why there are none."""

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    reason: str | None = None


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Return the files in `paths` as they are, with each folder replaced by the pictures below it, sorted.

    Raises:
        InputError: A folder holds no pictures.
    """
    suffixes = Image.registered_extensions()
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        below = [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
        pictures = sorted(each for each in below if each.suffix.lower() in suffixes)
        if not pictures:
            raise InputError(f"{path}: a folder without pictures; they are told by suffixes such as .jpg and .png.")
        found += pictures
    return found


def classify(model: VisionMamba, paths: Sequence[Path], *, top: int = 5, batch: int = 8) -> Iterator[Classified]:
    """Yield the `top` classes of each picture, in the order of `paths`, computed lazily in batches of `batch` pictures.

    Classes have the names that `class_names` gives them.

    Raises:
        InputError: The model has no head, or the logits of a picture are not finite.
    """
    if model.num_classes == 0:
        raise InputError("the model has no head, so it names no class: open it with weights that have one.")
    waiting: list[tuple[Path, Tensor | str]] = []
    for number, path in enumerate(paths, start=1):
        try:
            waiting.append((path, prepare(open_image(path), model.patch_embed.img_size[0])))
        except InputError as error:
            waiting.append((path, str(error)))
        if len(waiting) == batch or number == len(paths):
            yield from _classify_batch(model, waiting, top)
            waiting = []


def class_names(classes: int) -> Sequence[str]:
    """Return the class names of ImageNet for 1000 classes, and otherwise the class numbers."""
    return CLASSES if classes == len(CLASSES) else [f"class {index}" for index in range(classes)]


@torch.inference_mode()
def _classify_batch(model: VisionMamba, pictures: Sequence[tuple[Path, Tensor | str]], top: int) -> list[Classified]:
    readable = [picture for _, picture in pictures if isinstance(picture, Tensor)]
    rankings: Iterator[tuple[tuple[str, float], ...]] = iter(())
    if readable:
        logits = model(torch.stack(readable).to(model.norm_f.weight.device)).float()
        if not logits.isfinite().all():  # pictures are finite, always
            raise InputError("the model's logits are not finite: its weights are not, or too large for their dtype.")
        names = class_names(logits.shape[1])
        ranked = logits.softmax(dim=1).topk(min(top, logits.shape[1]))
        rankings = iter(
            tuple((names[index], probability) for index, probability in zip(*pair, strict=True))
            for pair in zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True)
        )
    return [
        Classified(path, reason=picture) if isinstance(picture, str) else Classified(path, next(rankings))
        for path, picture in pictures
    ]
