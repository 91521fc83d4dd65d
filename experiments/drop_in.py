"""The drop-in makes code that imports mamba_ssm 20 times as fast on a CPU, and 10 times as fast to train.

Vision Mamba tiny at 224 x 224, written by the names of mamba_ssm, in float32. Compared are what such code runs
without CUDA (torch's convolution, and the steps of the official selective_scan_ref) and the same code on the drop-in:
once with the drop-in's own Mamba, which is what serves where mamba_ssm is not installed, and once with the mixer as
the official repository composes it out of the drop-in's functions. All have the same weights, and the same logits
before anything is timed. Ratios are paired in interleaved rounds, of a
training step as many as the reference leaves time for. Takes four to eight minutes:

    python experiments/drop_in.py
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import common
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import typer

from scanlab.integrations import mamba_ssm
from scanlab.report.formatting import milliseconds, times
from scanlab.runtime.dispatch import dispatcher

REFERENCE = "reference"
MIXERS = {REFERENCE: "PlainMamba", "drop-in, its own mixer": "Mamba", "drop-in, official mixer": "OfficialMamba"}
TARGETS = {"one image": 20.0, "training step": 10.0}
FEWEST = {"one image": 8, "training step": 1}  # a step of the reference takes minutes
MOST, LIMIT_S = 60, 75.0  # rounds of one task
TOLERANCE = 1e-4  # of the largest logit


def models(size: int, depth: int) -> dict[str, torch.nn.Module]:
    """Return the same Vision Mamba on each mixer."""
    mamba_ssm.install()
    import vim_by_name  # what it imports by the names of mamba_ssm is there only now

    made = {
        name: vim_by_name.Vim(size, depth=depth, mixer=getattr(vim_by_name, mixer)) for name, mixer in MIXERS.items()
    }
    for parameter in made[REFERENCE].parameters():
        if not parameter.any():  # the embeddings begin with nothing, which would hide what is done to them
            torch.nn.init.normal_(parameter, std=0.02)
    for model in made.values():
        model.load_state_dict(made[REFERENCE].state_dict())
    return made


def one_image(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Run a forward pass of the first image."""
    with torch.inference_mode():
        model(images[:1])


def training_step(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Run forward, backward and a step of AdamW on all images."""
    loss = F.cross_entropy(model(images), torch.arange(len(images)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)  # one step leaves the weights as good as they were
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


TASKS: dict[str, Callable[[torch.nn.Module, torch.Tensor], None]] = {
    "one image": one_image,
    "training step": training_step,
}


def main(
    size: Annotated[int, typer.Option(help="Pixels along a side of an image.")] = 224,
    depth: Annotated[int, typer.Option(help="Layers.")] = 24,
    batch: Annotated[int, typer.Option(help="Images in a training step.")] = 8,
    out: Path = common.RESULTS / "drop_in",
) -> None:
    """Check, measure, and write the page."""
    said = common.setting()
    made, images = models(size, depth), torch.rand(batch, 3, size, size)
    with torch.inference_mode():
        logits = {name: model(images[:1]) for name, model in made.items()}
    for name, values in logits.items():
        apart = float((values - logits[REFERENCE]).abs().max() / logits[REFERENCE].abs().max())
        if apart > TOLERANCE:
            raise SystemExit(f"{name} is {apart:.1e} of the largest logit from the reference: must be {TOLERANCE:.0e}.")
    rows = []
    for task, step in TASKS.items():
        for name, model in made.items():
            step(model, images[:1] if name == REFERENCE else images)  # to warm up, one image will do
        calls = {name: functools.partial(step, model, images) for name, model in made.items()}
        samples = common.interleaved(calls, FEWEST[task], MOST, LIMIT_S, warm=True)
        for name, taken in samples.items():
            low, ratio, high = np.quantile(samples[REFERENCE] / taken, (0.25, 0.5, 0.75))
            row = {"task": task, "code": name, **common.quartiles_s(taken), "ratio": ratio}
            rows.append(row | {"ratio_quartile1": low, "ratio_quartile3": high, "rounds": len(taken)})
    frame = pd.DataFrame(rows)
    text = pd.DataFrame(
        {
            "": frame.task,
            "code": frame.code,
            "median": (1e3 * frame.median_s).map(milliseconds),
            "faster": frame.ratio.map(times),
            "middle half of rounds": frame.ratio_quartile1.map(times) + " to " + frame.ratio_quartile3.map(times),
            "rounds": frame["rounds"].map(str),
            "at least": frame.task.map(TARGETS).map(times).where(frame.code != REFERENCE, ""),
        }
    )
    caption = f"{said}; batch {batch} in training; drop-in served by {common.served_by(dispatcher())}"
    common.write_page(out, __doc__, caption, {}, {"Times": text}, frame)
    print(text.to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
