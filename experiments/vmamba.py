"""VMamba tiny is faster by `cross_scan_2d` than by a plain scan of four copies of the map.

VMamba tiny at 224 x 224, batch 1, float32, in its three official designs. Compared are the model by the op
`cross_scan_2d`; the same model with the map laid out as four sequences, which one grouped selective scan takes, as the
official code does; and the same with the recurrence step by step in PyTorch, which is what the official code falls back
to. All have the same weights, and the same logits before anything is timed. The mixers of a fourth model pass the map
on and scan nothing: the time of its products, convolutions and norms, which are the same in all four, bounds what any
scan can gain. The bound of a ratio is its number divided by that of "none". Ratios are paired in interleaved rounds.
The first release has 16 states and twice the width in its mixers, where the recurrence is most of the fallback; the
later designs have one state. Takes two to three minutes:

    python experiments/vmamba.py
"""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Annotated, Any

import common
import numpy as np
import pandas as pd
import torch
import typer

from scanlab.models.cross_scan_block import CrossScanMixer
from scanlab.models.vmamba import FAMILIES, VMamba
from scanlab.report.formatting import milliseconds, times
from scanlab.runtime.dispatch import dispatcher, selective_scan_fn
from scanlab_kernels.cross_scan_2d.torch import gather, scatter

DEPTHS = {"s1": 8, "s2": 5, "v0": 9}
OP, PLAIN, FALLBACK = "cross_scan_2d", "plain scan of four copies", "recurrence in PyTorch"
NONE = "none: the rest of the model"
FEWEST, MOST = 3, 25  # rounds
TOLERANCE = 1e-4  # of the largest logit


def plain_scan(mixer: CrossScanMixer, u: torch.Tensor) -> torch.Tensor:
    """Return the scan of u (batch, inner, height, width) by one grouped scan of four sequences."""
    height, width = u.shape[2:]
    sequences = torch.stack([scatter(u, direction) for direction in range(4)], dim=1)
    selected = torch.einsum("bkdl,kcd->bkcl", sequences, mixer.x_proj_weight)
    low_rank, B, C = selected.split(mixer.sizes, dim=2)
    delta = torch.einsum("bkrl,kdr->bkdl", low_rank, mixer.dt_projs_weight)
    A, D, bias = -mixer.A_logs.exp(), mixer.Ds, mixer.dt_projs_bias.flatten()
    y: Any = selective_scan_fn(
        sequences.flatten(1, 2), delta.flatten(1, 2), A, B, C, D, delta_bias=bias, delta_softplus=True
    )
    by_direction = y.unflatten(1, (4, -1)).unbind(1)
    return sum(gather(each, direction, height, width) for direction, each in enumerate(by_direction))


def pass_on(mixer: CrossScanMixer, u: torch.Tensor) -> torch.Tensor:
    """Return u: neither the scan nor the products of its weights are computed."""
    return u


def models(family: str, depths: tuple[int, ...], dim: int) -> dict[str, VMamba]:
    """Return the same VMamba with each way to scan."""
    by_op = VMamba(depths, dim, FAMILIES[family]).eval()
    by_copies, by_steps, without = (copy.deepcopy(by_op) for _ in range(3))
    for model, scan in ((by_copies, plain_scan), (without, pass_on)):
        for module in model.modules():
            if isinstance(module, CrossScanMixer):
                module.scanned = MethodType(scan, module)
    by_steps.scan = "cross_scan_2d_torch"
    return {OP: by_op, PLAIN: by_copies, FALLBACK: by_steps, NONE: without}


@torch.inference_mode()
def run(model: VMamba, image: torch.Tensor) -> torch.Tensor:
    """Return the logits."""
    return model(image)


def main(
    size: Annotated[int, typer.Option(help="Pixels along a side of the image.")] = 224,
    dim: Annotated[int, typer.Option(help="Width of the first stage.")] = 96,
    limit_s: Annotated[float, typer.Option(help="Seconds of timing for each design.")] = 40.0,
    out: Path = common.RESULTS / "vmamba",
) -> None:
    """Check, measure, and write the page."""
    said, image, rows = common.setting(), torch.rand(1, 3, size, size), []
    for family, depth in DEPTHS.items():
        made = models(family, (2, 2, depth, 2), dim)
        logits = {name: run(model, image) for name, model in made.items() if name != NONE}
        for name, values in logits.items():
            apart = float((values - logits[FALLBACK]).abs().max() / logits[FALLBACK].abs().max())
            if apart > TOLERANCE:
                raise SystemExit(f"{name} is {apart:.1e} of the largest logit off: must be {TOLERANCE:.0e}.")
        calls: dict[str, Callable[[], object]] = {
            name: functools.partial(run, model, image) for name, model in made.items()
        }
        samples = common.interleaved(calls, FEWEST, MOST, limit_s, warm=True)
        for name, taken in samples.items():
            low, ratio, high = np.quantile(taken / samples[OP], (0.25, 0.5, 0.75))
            row = {"design": family, "scan": name, **common.quartiles_s(taken), "ratio": ratio}
            rows.append(row | {"ratio_quartile1": low, "ratio_quartile3": high, "rounds": len(taken)})
    frame = pd.DataFrame(rows)
    text = pd.DataFrame(
        {
            "design": frame.design,
            "scan": frame.scan,
            "median": (1e3 * frame.median_s).map(milliseconds),
            "times as long": frame.ratio.map(times),
            "middle half of rounds": frame.ratio_quartile1.map(times) + " to " + frame.ratio_quartile3.map(times),
            "rounds": frame["rounds"].map(str),
        }
    )
    caption = f"{said}; scans served by {common.served_by(dispatcher())}"
    common.write_page(out, __doc__, caption, {}, {"Times": text}, frame)
    print(text.to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
