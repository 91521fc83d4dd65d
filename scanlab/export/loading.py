"""Loading of an exported model and preparation of a picture, for run.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]


def load(path: Path) -> Callable[[Array], Array]:
    """Return the model in `path` as a function from pictures (batch, 3, size, size) to logits (batch, classes)."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"images": images})[0]
    import torch

    for library in (path.parent / "kernels").iterdir():
        torch.ops.load_library(library)
    # as C++ programs load it; torch._inductor.aoti_load_package would ask a compiler about this processor
    package = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    return lambda images: package.run([torch.from_numpy(images)])[0].numpy()


def prepare(path: str, batch: int, size: int) -> Array:
    """Return the centre of the picture in `path`, repeated: (batch, 3, size, size), with ImageNet's normalisation."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    sides = [int(size / 0.875) * side // min(picture.size) for side in picture.size]
    left, top = (round((side - size) / 2) for side in sides)
    middle = picture.resize(sides, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    pixels = (np.asarray(middle, np.float32) / 255 - mean) / std
    return np.repeat(pixels.transpose(2, 0, 1)[None], batch, axis=0)
