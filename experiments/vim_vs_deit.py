"""Vision Mamba overtakes an attention model of its size as images grow.

The paper (Zhu et al. 2024, Vision Mamba, figure 1): at 1248 x 1248 on a GPU 2.8 times as fast as DeiT, with 86.8 % less
memory. Here: one image on a CPU, in float32 or by `--dtype bfloat16`, random weights, beside DeiT with eager attention
and with torch's SDPA. Times are interleaved; memory is what an image takes beyond the weights, in a process of its own.
Sizes measured before on this processor are kept, so that a run can go on where one ended; `--sizes` measures anew.
Needs transformers. Models that take turns in one process keep handing memory back and asking for it: on huge pages that
are kept, all models alike, that costs little. `scanlab doctor` names the settings:

    export THP_MEM_ALLOC_ENABLE=1 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=8589934592
    python experiments/vim_vs_deit.py --budget 25m
"""

import importlib.util
import os
import time
from pathlib import Path
from typing import Annotated

import common
import numpy as np
import pandas as pd
import torch
import typer

from scanlab.models.vision_mamba import RELEASED
from scanlab.report.formatting import memory, three_digits, times

SIZES = (224, 384, 512, 768, 1024, 1248)
WIDTHS = {"tiny": 192, "small": 384}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MODELS = tuple(f"{kind}-{width}" for width in WIDTHS for kind in ("Vim", "eager DeiT", "SDPA DeiT"))
FEWEST, MOST, LIMIT_S = 3, 15, 40.0  # rounds of one size
INSTALL = "DeiT comes from transformers, which is not installed: pip install 'transformers>=5'"


def ready(name: str, size: int, dtype: str, backend: str | None, batch: int = 1) -> common.Call:
    """Return one forward pass of the model `name` on `batch` images of `size` x `size`."""
    kind, _, width = name.rpartition("-")
    images = torch.rand(batch, 3, size, size, dtype=DTYPES[dtype])
    if kind == "Vim":
        model: torch.nn.Module = RELEASED[f"vim_{width.lower()}"](img_size=size, scan=backend)
    else:
        from transformers import ViTConfig, ViTForImageClassification

        dim = WIDTHS[width]
        shape = {"hidden_size": dim, "intermediate_size": 4 * dim, "num_attention_heads": dim // 64}
        attention = kind.split()[0].lower()
        config = ViTConfig(**shape, image_size=size, num_labels=1000, attn_implementation=attention)
        model = ViTForImageClassification(config)
    model.eval().to(images.dtype)
    return torch.inference_mode()(lambda: model(images))


def measured(size: int, models: list[str], dtype: str, backend: str | None) -> pd.DataFrame:
    """Return a row for each of `models`; `over_vim` is its time as a multiple of that of Vim, paired in each round."""
    said = {"setting": common.place(), "load_before": os.getloadavg()[0]}
    peaks = {name: common.fresh_peak_bytes(ready, name, size, dtype, backend) for name in models}
    calls = {name: ready(name, size, dtype, backend) for name, peak in peaks.items() if peak is not None}
    samples = common.interleaved(calls, FEWEST, MOST, LIMIT_S)
    rows = []
    for name, taken in samples.items():
        over = np.median(taken / samples[f"Vim-{name.rpartition('-')[2]}"])
        row = {"size": size, "model": name, **common.quartiles_s(taken), "over_vim": over, "rounds": len(taken)}
        rows.append(row | {"peak_bytes": peaks[name]} | said)
    return pd.DataFrame(rows)


def write(frame: pd.DataFrame, folder: Path, dtype: str) -> None:
    """Write the page: all measurements of a dtype so far, beside the claims."""
    frame = frame.assign(images_per_s=1.0 / frame.median_s, ns_per_pixel=1e9 * frame.median_s / frame["size"] ** 2)
    names = [name for name in MODELS if name in set(frame.model)]
    columns = ("images_per_s", "peak_bytes", "ns_per_pixel", "over_vim")
    rate, used, per_pixel, over = (frame.pivot(index="size", columns="model", values=each)[names] for each in columns)
    claims = []
    for name in (each for each in names if not each.startswith("Vim")):
        vim, size = f"Vim-{name.rpartition('-')[2]}", over[name].last_valid_index()
        saved = f"{1.0 - used[vim][size] / used[name][size]:.1%}"
        row = {"": f"{vim} beside {name} at {size}", "faster": times(over[name][size]), "claimed to be": times(2.8)}
        row |= {"memory saved": saved, "claimed to save": "86.8%"}
        claims.append(row | {"faster from a side of": common.crossing(over[name].dropna())})
    pictures, sections = {}, {"Claimed": pd.DataFrame(claims)}
    load = f"load before a size {frame.load_before.min():.2f} to {frame.load_before.max():.2f}"
    caption = "; ".join((*sorted(set(frame.setting)), load))
    spells = {"images per second": three_digits, "memory of one image": memory, "nanoseconds per pixel": three_digits}
    for (noun, spell), values in zip(spells.items(), (rate, used, per_pixel), strict=True):
        title, lines = f"Vision Mamba and DeiT: {noun}", common.lines_of(values)
        plot = common.Plot(title, f"Batch 1, {dtype}, CPU.", "side of the image (pixels)", noun, lines, spell)
        pictures[f"{noun.replace(' ', '_')}-{page_name(dtype)}"] = common.drawn(plot, caption)
        sections[noun.capitalize()] = common.spelled(values, spell)
    common.write_page(folder, __doc__, caption, pictures, sections, frame, page_name(dtype))


def page_name(dtype: str) -> str:
    """Return the name of the page of a dtype on this processor."""
    return f"{common.silicon_name()}-{dtype}"


def main(
    sizes: Annotated[str | None, typer.Option(help="Separated by commas; those not measured yet by default.")] = None,
    models: Annotated[str, typer.Option(help="Only these, separated by commas.")] = ",".join(MODELS),
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    backend: Annotated[str | None, typer.Option(help="Vim's scan; this machine's choice by default.")] = None,
    budget: Annotated[str, typer.Option(help="A size that would exceed it is not begun.")] = "30m",
    out: Path = common.RESULTS / "vim_vs_deit",
) -> None:
    """Measure, and write the page after each size."""
    if importlib.util.find_spec("transformers") is None:
        raise SystemExit(INSTALL)
    from scanlab.cli.duration import parse_duration  # the command line needs what a machine with a GPU may lack

    file = out / f"{page_name(dtype)}.csv"
    frame = pd.read_csv(file) if file.exists() else pd.DataFrame({"size": pd.Series(dtype=int)})
    wanted = map(int, sizes.split(",")) if sizes else (each for each in SIZES if each not in set(frame["size"]))
    deadline, before, round_s = time.monotonic() + parse_duration(budget), 1, 0.0
    for size in wanted:
        # attention takes the square of the number of patches; rounds: the fewest, a first one, and two for memory
        if time.monotonic() + LIMIT_S + (FEWEST + 3) * round_s * (size / before) ** 4 > deadline:
            raise SystemExit(f"{size} would not fit into {budget}: run again to go on.")
        rows = measured(size, models.split(","), dtype, backend)
        frame = pd.concat([frame[frame["size"] != size], rows])
        write(frame.sort_values(["size", "model"]), out, dtype)
        before, round_s = size, rows.median_s.sum()


if __name__ == "__main__":
    typer.run(main)
