"""Names what is in a picture: python run.py PICTURE [model.pt2 | model.onnx]. Needs no compiler and no scanlab.

model.pt2 needs torch, model.onnx needs onnxruntime; both numpy and, for the picture, pillow.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]
HERE = Path(__file__).resolve().parent


def load(path: Path) -> Callable[[Array], Array]:
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"images": images})[0]
    import torch

    for library in (HERE / "kernels").iterdir():
        torch.ops.load_library(library)
    # what C++ programs load with; torch._inductor.aoti_load_package would ask a compiler what this processor can do
    package = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    return lambda images: package.run([torch.from_numpy(images)])[0].numpy()


def prepare(path: str, batch: int, size: int) -> Array:
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    sides = [int(size / 0.875) * side // min(picture.size) for side in picture.size]
    left, top = (round((side - size) / 2) for side in sides)
    middle = picture.resize(sides, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    pixels = (np.asarray(middle, np.float32) / 255 - mean) / std
    return np.repeat(pixels.transpose(2, 0, 1)[None], batch, axis=0)


if __name__ == "__main__":
    manifest = json.loads((HERE / "manifest.json").read_text())
    model = load(HERE / (sys.argv[2] if len(sys.argv) > 2 else next(iter(manifest["models"]))))
    logits = model(prepare(sys.argv[1], manifest["batch"], manifest["size"]))[0]
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    names = (HERE / "classes.txt").read_text().splitlines()
    for index in np.argsort(-shares)[:5]:
        print(f"{shares[index]:6.1%}  {names[index]}")
