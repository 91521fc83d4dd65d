"""One layer against the length of its sequence: a scan takes time in proportion to it, attention to its square.

A mixing layer of Vim-small (both directions) on the reference loop and on this machine's best scan, beside one of
DeiT-small on torch's fused attention: 384 channels, batch 1, float32. A line ends before a point that would exceed
`--point` or most of the memory. Memory is what a call takes beyond its input and the weights, in a process of its own.

    python experiments/scan_vs_attention.py --point 60s
"""

import os
from pathlib import Path
from typing import Annotated

import common
import pandas as pd
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from scanlab.cli.duration import parse_duration
from scanlab.models.mamba_block import Mixer, MixerOptions
from scanlab.report.formatting import memory, milliseconds
from scanlab.runtime.dispatch import dispatcher

LENGTHS = tuple(2**power for power in range(9, 18))
DIM, HEADS = 384, 6
LINES = ("reference", "best", "SDPA")
FEWEST, MOST, LIMIT_S = 2, 15, 10.0  # rounds of one length
USABLE_BYTES = 0.7 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Attention(nn.Module):
    """Multi-head attention as DeiT has it, on torch's scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix `hidden` (batch, length, dim); the shape is kept."""
        q, k, v = self.qkv(hidden).unflatten(-1, (3, HEADS, DIM // HEADS)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def ready(line: str, length: int) -> common.Call:
    """Return one call of a layer on a sequence of `length`."""
    hidden = torch.randn(1, length, DIM)
    if line == "SDPA":
        attention = Attention().eval()
        return torch.inference_mode()(lambda: attention(hidden))
    options = MixerOptions()
    mixer = Mixer(DIM, state=16, bimamba_type="v2", divide_out=True, layer_scale=None, options=options).eval()
    scan = dispatcher(None if line == "best" else line)
    return torch.inference_mode()(lambda: mixer(hidden, scan))


def fits(points: list[dict[str, float]], length: int, point_s: float) -> bool:
    """Return whether a line may go on to `length`, with time growing by its square and memory linearly."""
    if not points:
        return True
    last = points[-1]
    growth = length / last["length"]
    too_long = last["median_s"] * growth**2 > point_s
    return not too_long and not last["peak_bytes"] * growth > USABLE_BYTES


def main(
    point: Annotated[str, typer.Option(help="A call expected to take longer is not made.")] = "60s",
    out: Path = common.RESULTS / "scan_vs_attention",
) -> None:
    """Measure every line at every length that fits, and write the page."""
    caption, point_s = common.setting(), parse_duration(point)
    points: dict[str, list[dict[str, float]]] = {line: [] for line in LINES}
    for length in LENGTHS:
        peaks = {
            line: common.fresh_peak_bytes(ready, line, length) for line in LINES if fits(points[line], length, point_s)
        }
        calls = {line: ready(line, length) for line, peak in peaks.items() if peak is not None}
        for line, taken in common.interleaved(calls, FEWEST, MOST, LIMIT_S).items():
            points[line].append({"length": length, **common.quartiles_s(taken), "peak_bytes": peaks[line]})
    frame = pd.DataFrame([{"line": line, **each} for line, taken in points.items() for each in taken])
    frame.insert(2, "median_ms", 1e3 * frame.median_s)
    caption = f"{caption}; best: {common.served_by(dispatcher())}"
    subtitle = "384 channels, batch 1, float32: Vim-small's layer on two scans, DeiT-small's on fused attention."
    sections, pictures = {}, {}
    for value, noun, spell in (("median_ms", "time", milliseconds), ("peak_bytes", "memory", memory)):
        by_length = frame.pivot(index="length", columns="line", values=value)[list(LINES)]
        title = f"One mixing layer: {noun} against sequence length"
        plot = common.Plot(title, subtitle, "length of the sequence", noun, common.lines_of(by_length), spell)
        pictures[noun] = common.drawn(plot, caption)
        sections[f"{noun.capitalize()} of one call"] = common.spelled(by_length, spell)
    common.write_page(out, __doc__, caption, pictures, sections, frame)


if __name__ == "__main__":
    typer.run(main)
