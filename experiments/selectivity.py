"""Ink alone does not decide the step sizes of the digits model: on blank paper they are within 8 % of those on ink.

A step size near 0 ignores a patch and keeps the memory of earlier ones; a large one overwrites it. Maps
of the mean over channels, one for each layer and direction, each as a multiple of its own mean: for the trained digits
model on held-out digits, and for Vim-tiny on photographs; the table compares inked patches with blank ones. Vim-tiny's
weights are trained-like noise, which shows how much of a map is the image alone; `--weights vim_tiny` fetches trained
ones.

    python experiments/selectivity.py
"""

from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import typer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from scanlab.contract.problem import Direction, ScanInputs, ScanOutput
from scanlab.models.capture import trained_like_
from scanlab.models.checkpoints import open_model
from scanlab.models.digits import digits_model, digits_test_set
from scanlab.models.images import IMAGENET_MEAN, IMAGENET_STD, SAMPLES, prepare, sample_photograph
from scanlab.models.vision_mamba import VisionMamba, vim_tiny
from scanlab.report.formatting import three_digits
from scanlab.report.style import applied, sheet
from scanlab.runtime.dispatch import scan

DIRECTIONS = ("forward", "backward")
LAYERS = (0, 7, 15, 23)  # of Vim-tiny


class Listener:
    """Scan that notes the mean step size of each token: (batch, length) for each direction of each layer."""

    def __init__(self) -> None:
        self.heard: list[tuple[Tensor, ...]] = []

    def __call__(
        self, *inputs: ScanInputs, delta_softplus: bool = True, direction: Direction = "forward"
    ) -> ScanOutput:
        """Compute the scan with this machine's choice."""
        self.heard.append(tuple(F.softplus(each.delta + each.delta_bias[:, None]).mean(1) for each in inputs))
        return scan(*inputs, delta_softplus=delta_softplus, direction=direction)


@torch.inference_mode()
def step_maps(model: VisionMamba, images: Tensor) -> NDArray[np.float32]:
    """Return mean step sizes (layers, directions, batch, rows, columns) of the patches, without the class token."""
    model.scan = listener = Listener()
    model(images)
    steps = torch.stack([torch.stack(layer) for layer in listener.heard])
    class_tokens = [model.patch_embed.num_patches // 2] if model.num_tokens else []
    patches = [token for token in range(steps.shape[-1]) if token not in class_tokens]
    return steps[..., patches].unflatten(-1, model.patch_embed.grid_size).numpy()


Row = dict[str, NDArray[np.float32]]


@applied()
def picture(rows: Sequence[Row], title: str, caption: str) -> Figure:
    """Draw rows of an image and its maps by heading, each map divided by its mean."""
    columns = len(rows[0])
    subtitle = "Mean step size of each patch, as a multiple of the mean over its map; bright patches are written down."
    made = sheet(7.6, len(rows) * 7.6 / columns + 0.9, title, subtitle, caption, columns, len(rows))
    relative = [{name: steps / steps.mean() for name, steps in list(row.items())[1:]} for row in rows]
    low, high = np.quantile(np.concatenate([steps.ravel() for row in relative for steps in row.values()]), (0.01, 0.99))
    for number, axes in enumerate(made.axes):
        row, column = divmod(number, columns)
        heading = list(rows[row])[column]
        axes.set_axis_off()
        if column == 0:
            axes.imshow(rows[row][heading], cmap="gray_r")
            continue
        heat = axes.imshow(relative[row][heading], cmap="magma", vmin=low, vmax=high)
        if row == 0 or heading not in rows[row - 1]:
            axes.set_title(heading, size=7.5)
    bar = made.figure.colorbar(heat, ax=made.axes, location="bottom", fraction=0.03, pad=0.02, shrink=0.5)
    bar.set_label("times the mean step size", size=8.0)
    return made.figure


def summary(maps: NDArray[np.float32], ink: NDArray[np.float32]) -> pd.DataFrame:
    """Compare step sizes on inked patches with those on blank paper, for each layer and direction."""
    rows = []
    for layer, way in np.ndindex(maps.shape[:2]):
        inked, blank = (float(maps[layer, way][chosen].mean()) for chosen in (ink > 0, ink <= 0))
        row = {"layer": layer + 1, "direction": DIRECTIONS[way], "inked": inked, "blank": blank}
        rows.append(row | {"inked / blank": inked / blank})
    return pd.DataFrame(rows)


def main(weights: str | None = None, size: int = 448, out: Path = common.RESULTS / "selectivity") -> None:
    """Draw both pictures and write the table."""
    digits, caption = digits_test_set(), common.setting()
    maps = step_maps(digits_model(), digits.images)
    ink = F.avg_pool2d(digits.images, 2, stride=1)[:, 0].numpy()
    numbers = summary(maps, ink)
    text = numbers.map(lambda value: three_digits(value) if isinstance(value, float) else str(value))
    ways = [(way, layer) for way in range(2) for layer in range(len(maps))]
    rows: list[Row] = []
    for label in range(10):
        first = int((digits.labels == label).nonzero()[0])
        heard = {f"{DIRECTIONS[way]}\nlayer {layer + 1}": maps[layer, way, first] for way, layer in ways}
        rows.append({"digit": digits.images[first, 0].numpy(), **heard})
    pictures = {"digits": picture(rows, "Step sizes of the trained digits model", caption)}

    model = open_model(weights, img_size=size) if weights else trained_like_(vim_tiny(img_size=size)).eval()
    photographs = torch.stack([prepare(sample_photograph(name), size) for name in SAMPLES])
    pixels = photographs * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]
    shown = pixels.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    maps = step_maps(model, photographs)
    rows = [
        {"image": image, **{f"{name}, layer {layer + 1}": maps[layer, way, index] for layer in LAYERS}}
        for way, name in enumerate(DIRECTIONS)
        for index, image in enumerate(shown)
    ]
    pictures["photographs"] = picture(rows, f"Step sizes of Vim-tiny, {weights or 'trained-like weights'}", caption)
    common.write_page(out, __doc__, caption, pictures, {"Steps of the digits model": text}, numbers)


if __name__ == "__main__":
    typer.run(main)
