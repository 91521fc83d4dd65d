"""Reading, writing and downloading weights: official checkpoints, safetensors files, and fits to another model size.

Source: hustvl/Vim@dd0358a, vim/main.py (the content of a training state, the weights that fine-tuning keeps),
vim/utils.py, interpolate_pos_embed; the names of the published files are those under which their users load them.
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import re
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from scanlab.errors import InputError, did_you_mean
from scanlab.models.vision_mamba import RELEASED, VisionMamba

HEAD = ("head.weight", "head.bias")
# errors of the unpickler and the archive reader on damaged files, found by damaging some
DAMAGE = (
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    struct.error,
    AttributeError,
    AssertionError,
    zipfile.BadZipFile,
)
LISTED = 8  # names of a kind that an error lists


@dataclass(frozen=True)
class Published:
    """Location of a released model's weights on the Hugging Face hub, and the sizes that identify the model."""

    repository: str
    file: str
    embed_dim: int
    tokens: int


PUBLISHED = {
    "vim_tiny": Published("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth", 192, 197),
    "vim_tiny_stride8": Published("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth", 192, 730),
    "vim_small": Published("hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth", 384, 197),
    "vim_small_stride8": Published("hustvl/Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth", 384, 730),
    "vim_base": Published("hustvl/Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth", 768, 197),
}


def open_model(
    source: str | Path,
    *,
    name: str | None = None,
    img_size: int = 224,
    num_classes: int | None = None,
) -> VisionMamba:
    """Return a released model with its weights, in evaluation mode.

    Args:
        source: A file with the weights of a released model, which is identified by its sizes, or a published name (see
            `published`).
        name: The model that the weights must belong to; any by default.
        img_size: Side of the images in pixels. The position embedding is resized where the weights have another size.
        num_classes: Number of classes. A number other than that of the weights gives a freshly initialised head.

    Raises:
        InputError: The weights cannot be read, are not those of a released model, or belong to another model than
            `name`.
    """
    path = Path(source)
    weights = read_weights(download(str(source)) if published(str(source)) and not path.is_file() else path)
    head = weights.get("head.weight")
    classes = len(head) if head is not None and head.dim() else 0
    asked = classes if num_classes is None else num_classes
    found = released_name(weights)
    if name not in (None, found):
        raise InputError(f"{source} holds weights of {found}, not of {name}: name that model, or other weights.")
    model = RELEASED[found](img_size=img_size, num_classes=asked)
    load_weights(model, weights, new_head=asked != classes)
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in a file by their official names, on the CPU.

    The file is `.safetensors` or was written by torch.save: a training state with the weights under `model`, or the
    weights alone. Such files are unpickled as data: they may hold tensors, plain values and an argparse.Namespace;
    anything else, which could run code, is refused.

    Raises:
        InputError: The file cannot be read, or does not hold weights.
    """
    if not path.is_file():
        names = [*PUBLISHED, *(Path(each.file).stem for each in PUBLISHED.values())]
        raise InputError(
            f"{path}: no such file; published names are {', '.join(names)}.{did_you_mean(str(path), names)}"
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    weights = content.get("model", content) if isinstance(content, Mapping) else content
    if (
        not isinstance(weights, Mapping)
        or not weights
        or not all(isinstance(each, Tensor) for each in weights.values())
    ):
        held = ", ".join(map(str, list(content)[:LISTED])) if isinstance(content, Mapping) else type(content).__name__
        raise InputError(f"{path} holds {held or 'nothing'}: must be weights by name, or hold them under 'model'.")
    for name, value in weights.items():
        fault = _fault_of(name, value)
        if fault is not None:
            raise InputError(f"{path}: {name!r} {fault}; save dense floating-point weights under their names.")
    return dict(weights)


def _fault_of(name: object, value: Tensor) -> str | None:
    """Return why `value` cannot be a weight, or None."""
    if not isinstance(name, str):
        return "is not a name"
    if value.is_nested:
        return "is nested"
    if value.is_meta:
        return "is on the meta device and holds no numbers"
    if value.is_quantized or value.layout != torch.strided:
        return "is sparse or quantized"
    if not value.is_floating_point():
        return f"is {value.dtype}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"is expanded to {tuple(value.shape)}"
    return None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as a safetensors file: {error}. It may be damaged or cut off."
        ) from error


def _refuse_compressed(path: Path) -> None:
    """Raise InputError for an archive that unpacks to more than the file holds: torch.save compresses nothing."""
    if not zipfile.is_zipfile(path):  # a comment can hide its end from Python, and not from torch
        raise InputError(f"{path} is no whole archive: it is damaged, cut off, or was not written by torch.save.")
    with zipfile.ZipFile(path) as archive:
        unpacked_bytes = sum(entry.file_size for entry in archive.infolist())
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    packed_bytes = path.stat().st_size
    if not stored or unpacked_bytes > packed_bytes:
        raise InputError(
            f"{path} holds {packed_bytes:,} bytes that unpack to {unpacked_bytes:,}: must be as torch.save writes it,"
            " uncompressed. If you trust the file, load it yourself and save its weights again."
        )


def _read_pickled(path: Path) -> object:
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # all that torch looks at
        if zipped:
            _refuse_compressed(path)
        # the arguments of an official training: all that its state holds besides tensors and plain values
        with torch.serialization.safe_globals([argparse.Namespace]):
            # mapped, so that the optimizer's state, two thirds of an official file, is never read
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        named = re.findall(r"GLOBAL ([\w.]+)", str(error))
        if not named:
            # torch's message proposes weights_only=False, which runs the code in a file.
            raise InputError(f"{path} is not a file of torch.save, or is damaged or cut off.") from error
        raise InputError(
            f"{path} holds a {named[0]}, and reading it could run code: weights, plain values and"
            " argparse.Namespace are read. If you trust the file, load it yourself and save its weights alone."
        ) from error
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} cannot be read as a file of torch.save: {reason}. It may be damaged or cut off."
        ) from error


def save_weights(model: VisionMamba, path: Path) -> None:
    """Write the model's weights to a safetensors file, under their official names, whole or not at all."""
    from safetensors.torch import save_file

    if path.suffix != ".safetensors":
        raise InputError(
            f"{path}: weights are written as safetensors; name it {path.with_suffix('.safetensors').name}."
        )
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            unfinished = Path(folder) / path.name
            save_file(weights, unfinished, metadata={"format": "pt"})
            os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}.") from error


def published(name: str) -> Published | None:
    """Return the published weights called `name`: vim_tiny, vim-tiny, or the file name with or without its suffix."""
    for model, each in PUBLISHED.items():
        if name.replace("-", "_") == model or name in (each.file, each.file.removesuffix(".pth")):
            return each
    return None


def download(name: str) -> Path:
    """Return the file of the weights published as `name`, from the local cache or the hub, resuming a download.

    Raises:
        InputError: There is no such name, or neither a connection nor a cached copy.
    """
    source = published(name)
    if source is None:
        near = did_you_mean(name, PUBLISHED)
        raise InputError(f"no weights are published as {name!r}: there are {', '.join(PUBLISHED)}.{near}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(source.repository, source.file))
    except (OSError, EntryNotFoundError) as error:
        raise InputError(
            f"cannot get {source.file} from {source.repository} on the Hugging Face hub:"
            f" {str(error).splitlines()[0]} Connect this machine, or download the file elsewhere and name its path."
        ) from error


def released_name(weights: Mapping[str, Tensor]) -> str:
    """Return the name of the released model that has weights of these sizes.

    Raises:
        InputError: No released model has these sizes.
    """
    position = weights.get("pos_embed")
    for name, each in PUBLISHED.items():
        if position is not None and position.shape == (1, each.tokens, each.embed_dim):
            return name
    shape = "missing" if position is None else tuple(position.shape)
    raise InputError(
        f"pos_embed is {shape}: none of {', '.join(PUBLISHED)} has that; build a VisionMamba with the options that"
        " these weights were trained with, and load them into it with load_weights."
    )


def load_weights(model: VisionMamba, weights: Mapping[str, Tensor], *, new_head: bool = False) -> tuple[str, ...]:
    """Load weights, by their official names, into the model in place.

    The position embedding is resized where the model has another grid of patches. Rotary tables of another grid follow
    from the model's own.

    Args:
        model: The model.
        weights: Tensors by their official names.
        new_head: Leave a head of another number of classes as it is initialised.

    Returns:
        The names of the weights that were resized or left out.

    Raises:
        InputError: Names are missing, unexpected or of another shape.
    """
    expected = model.state_dict()
    fitted = dict(weights)
    position, rows = fitted.get("pos_embed"), model.pos_embed
    if position is not None and rows is not None and _is_resizable(position, rows):
        fitted["pos_embed"] = resize_position_embedding(position, model.patch_embed.grid_size, model.num_tokens)
    for name in ("rope.freqs_cos", "rope.freqs_sin"):
        if name in expected and name in fitted and fitted[name].shape != expected[name].shape:
            fitted[name] = expected[name]
    if new_head and any(_differ(name, fitted, expected) for name in HEAD):
        fitted = {name: value for name, value in fitted.items() if name not in HEAD}
        fitted |= {name: expected[name] for name in HEAD if name in expected}
    problems = {
        "missing": [name for name in expected if name not in fitted],
        "unexpected": [name for name in fitted if name not in expected],
        "misshapen": [
            f"{name} {tuple(fitted[name].shape)}, not {tuple(expected[name].shape)}"
            for name in expected
            if name in fitted and fitted[name].shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
        cure = (
            " With new_head=True the head is left out." if any(_differ(name, fitted, expected) for name in HEAD) else ""
        )
        raise InputError(f"these weights do not fit the model; {listed}.{cure}")
    model.load_state_dict(fitted)
    return tuple(name for name in expected if name not in weights or fitted[name] is not weights[name])


def _is_resizable(position: Tensor, rows: Tensor) -> bool:
    """Return whether a position embedding differs from that of the model in its number of rows alone."""
    return (
        position.dim() == 3
        and (position.shape[0], position.shape[2]) == (rows.shape[0], rows.shape[2])
        and position.shape[1] != rows.shape[1]
    )


def _differ(name: str, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    shapes = [each[name].shape if name in each else None for each in (weights, expected)]
    return shapes[0] != shapes[1]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def resize_position_embedding(position: Tensor, grid: tuple[int, ...], class_tokens: int) -> Tensor:
    """Return the position embedding of a square grid of patches, resized to another grid by bicubic interpolation.

    As in the official code, the first `class_tokens` rows are kept and the others are taken for patches. With the class
    token in the middle this is a mistake, which keeps the row of patch 0 and resizes that of the class token along with
    the patches; but the released stride-8 weights were fine-tuned through it.

    Args:
        position: (1, tokens, embed_dim).
        grid: (rows, columns) of the new grid.
        class_tokens: Number of class tokens.
    """
    kept, patches = position[:, :class_tokens], position[:, class_tokens:]
    side = math.isqrt(patches.shape[1])
    if side**2 != patches.shape[1] or not side:
        raise InputError(
            f"pos_embed has {patches.shape[1]} rows besides {class_tokens} class tokens:"
            " only that of a square grid can be resized."
        )
    image = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(image.float(), size=grid, mode="bicubic", align_corners=False).to(position.dtype)
    return torch.cat((kept, resized.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)
