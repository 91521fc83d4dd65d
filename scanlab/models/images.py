"""Image preprocessing: the official evaluation pipeline, and conversion of image files to RGB with 8 bits.

Source: hustvl/Vim@dd0358a, vim/datasets.py, build_transform (evaluation); the arithmetic of its resize and
crop is torchvision's.
"""

from __future__ import annotations

import importlib.util
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from scanlab.contract.files import expect_regular
from scanlab.errors import InputError, did_you_mean

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_RATIO = 0.875
SAMPLES = ("china.jpg", "flower.jpg")
# Formats of programs, which Pillow hands to an interpreter.
PROGRAMS = ("EPS",)
# errors of decoders on damaged files
DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error, zlib.error),
    *(ArithmeticError, AttributeError, MemoryError, RuntimeError),
)


def open_image(path: Path) -> Image.Image:
    """Return the picture in a file: upright, RGB, 8 bits.

    Transparent parts become white, 16-bit grey is scaled to 8 bits, and of an animation the first frame is returned.
    PostScript, which is a program, is not run.

    Raises:
        InputError: The file does not hold a picture that can be read; the error names the file.
    """
    try:
        expect_regular(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # complaints about metadata of pictures that can be read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()
            formats = [each for each in Image.ID if each not in PROGRAMS]
            with Image.open(path, formats=formats) as file:
                return _rgb(ImageOps.exif_transpose(file), path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path} is too large: pictures of at most {Image.MAX_IMAGE_PIXELS:,} pixels are opened; scale it down."
        ) from error
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except DAMAGE as error:
        raise InputError(f"{path} cannot be read as a picture: {error}. It may be damaged or cut off.") from error


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise InputError(
                f"{path} has pixel values from {values.min()} to {values.max()} (mode {image.mode}):"
                " pictures of 8 and 16 bits are understood."
            )
        return Image.fromarray(np.uint8(np.round(values / 257.0))).convert("RGB")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return image.convert("RGB")


def prepare(image: Image.Image, size: int = 224) -> Tensor:
    """Return the picture as the official evaluation pipeline prepares it: float32 (3, size, size), ImageNet-normalised.

    The shorter side is resized to size / 0.875 (256 for 224), bicubic, and the centre is cut out.

    Raises:
        InputError: The picture is so narrow that resizing it would make it huge.
    """
    shorter = int(size / CROP_RATIO)
    width, height = image.size
    longer = int(shorter * max(width, height) / min(width, height))
    if Image.MAX_IMAGE_PIXELS is not None and shorter * longer > Image.MAX_IMAGE_PIXELS:
        raise InputError(
            f"a picture of {width} x {height} pixels is too narrow: at {shorter} pixels it is {longer} long."
        )
    resized = image.resize((shorter, longer) if width <= height else (longer, shorter), Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2.0) for side in resized.size)
    pixels = np.asarray(resized.crop((left, top, left + size, top + size)), dtype=np.float32)
    normalised = (torch.from_numpy(pixels) / 255.0 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    return normalised.permute(2, 0, 1).contiguous()


def sample_photograph(name: str = "china.jpg") -> Image.Image:
    """Return a photograph that ships with scikit-learn, china.jpg (a temple) or flower.jpg: 640 x 427, RGB."""
    if name not in SAMPLES:
        raise InputError(
            f"sample photograph {name!r}: must be one of {', '.join(SAMPLES)}.{did_you_mean(name, SAMPLES)}"
        )
    spec = importlib.util.find_spec("sklearn")  # finds the package without importing it, which takes a second
    if spec is None or spec.origin is None:
        raise InputError(
            "the sample photographs come with scikit-learn, which is not installed: pip install scikit-learn"
        )
    return open_image(Path(spec.origin).parent / "datasets" / "images" / name)
