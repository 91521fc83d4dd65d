"""bfloat16 costs Vision Mamba little exactness: its errors and its speed-ups, model by model.

Crops of two photographs at 224 pixels, float32 beside bfloat16: the error of a logit as a share of the largest, the
share of crops whose first class stays, and of those that were decided (by more than 1 % of the largest logit); images/s
in interleaved rounds. Released shapes with trained-like weights, whose classes lie closer together than trained ones;
the trained digits model says what it costs where a model has learned its task.

    python experiments/bfloat16.py
"""

import copy
from pathlib import Path
from typing import Annotated

import common
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from scanlab.models.capture import trained_like_
from scanlab.models.digits import digits_model, digits_test_set
from scanlab.models.images import IMAGENET_MEAN, IMAGENET_STD, SAMPLES, sample_photograph
from scanlab.models.vision_mamba import RELEASED, VisionMamba
from scanlab.report.formatting import scientific, times
from scanlab.runtime.dispatch import dispatcher

SIZE = 224
BATCH = 8
DECIDED = 0.01  # of the largest logit, between the first class and the second
FEWEST, MOST, LIMIT_S = 5, 20, 20.0


def crops(count: int) -> Tensor:
    """Return normalised windows of the sample photographs at random places and scales: (count, 3, 224, 224)."""
    generator, made = np.random.default_rng(0), []
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    for index in range(count):
        photograph = np.asarray(sample_photograph(SAMPLES[index % len(SAMPLES)]).convert("RGB"))
        side = int(generator.integers(100, min(photograph.shape[:2])))
        top, left = (int(generator.integers(0, extent - side + 1)) for extent in photograph.shape[:2])
        window = torch.tensor(photograph[top : top + side, left : left + side]).permute(2, 0, 1) / 255.0
        resized = F.interpolate(window[None], (SIZE, SIZE), mode="bicubic", antialias=True)[0].clamp(0, 1)
        made.append((resized - mean) / std)
    return torch.stack(made)


@torch.inference_mode()
def compared(name: str, model: VisionMamba, images: Tensor, labels: Tensor | None = None) -> dict[str, object]:
    """Return a row that compares `model` in bfloat16 with itself in float32 on `images`."""
    with torch.inference_mode(False):  # nothing is kept of weights that are made in it
        half = copy.deepcopy(model).bfloat16()
    exact = torch.cat([model(batch) for batch in images.split(BATCH)])
    rounded = torch.cat([half(batch.bfloat16()).float() for batch in images.split(BATCH)])
    top = exact.topk(2).values
    decided = (top[:, 0] - top[:, 1]) > DECIDED * exact.abs().max()
    same = (rounded.argmax(1) == exact.argmax(1)).float()
    single = images[:1]
    calls = {"float32": lambda: model(single), "bfloat16": lambda: half(single.bfloat16())}
    taken = common.interleaved(calls, FEWEST, MOST, LIMIT_S)
    right = [float("nan")] * 2 if labels is None else [shares(each, labels) for each in (exact, rounded)]
    return {
        "model": name,
        "images": len(images),
        "logit_error": float((rounded - exact).abs().max() / exact.abs().max()),
        "same_class": float(same.mean()),
        "decided": int(decided.sum()),
        "same_class_decided": float(same[decided].mean()),
        "right_float32": right[0],
        "right_bfloat16": right[1],
        "faster": float(np.median(taken["float32"] / taken["bfloat16"])),
    }


def shares(logits: Tensor, labels: Tensor) -> float:
    """Return the share of images whose first class is their label."""
    return float((logits.argmax(1) == labels).float().mean())


def main(
    count: Annotated[int, typer.Option(help="Crops for each released model.")] = 48,
    models: Annotated[str, typer.Option(help="Released shapes, separated by commas.")] = "vim_tiny,vim_small,vim_base",
    backend: Annotated[str | None, typer.Option(help="Vim's scan; this machine's choice by default.")] = None,
    out: Path = common.RESULTS / "bfloat16",
) -> None:
    """Compare, and write the table."""
    caption, images = common.setting(), crops(count)
    rows = [compared("digits, trained", digits_model(backend), *digits_test_set())]
    for name in models.split(","):
        rows.append(compared(name, trained_like_(RELEASED[name](scan=backend)).eval(), images))
    frame = pd.DataFrame(rows)
    spells = dict.fromkeys(("same_class", "same_class_decided", "right_float32", "right_bfloat16"), share)
    spells |= {"logit_error": scientific, "faster": times, "images": str, "decided": str}
    text = frame.assign(**{column: frame[column].map(spell) for column, spell in spells.items()})
    caption = f"{caption}; scan: {common.served_by(dispatcher(backend))}"
    common.write_page(out, __doc__, caption, {}, {"bfloat16 beside float32": text}, frame)
    print(text.to_string(index=False))


def share(value: float) -> str:
    """Format a share in per cent; NaN becomes empty text."""
    return "" if np.isnan(value) else f"{value:.1%}"


if __name__ == "__main__":
    typer.run(main)
