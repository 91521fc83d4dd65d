"""Where Vision Mamba looks: the step sizes that a model chooses for each patch of an image.

A step size near 0 lets a patch pass unnoticed and keeps the memory of what came before; a large one overwrites it. Maps
of the mean over channels, one for each layer and direction, each as a multiple of its own mean: for the trained digits
model on held-out digits, and for Vim-tiny on a photograph. Vim-tiny's weights are trained-like noise, which shows how
much of a map is the image and the patch grid alone; `--weights vim_tiny` fetches those that were trained on ImageNet.

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

from scanlab.deploy.dispatch import scan
from scanlab.models.capture import trained_like_
from scanlab.models.checkpoints import open_model
from scanlab.models.digits import digits_model, digits_test_set
from scanlab.models.images import IMAGENET_MEAN, IMAGENET_STD, SAMPLES, prepare, sample_photograph
from scanlab.models.vision_mamba import VisionMamba, vim_tiny
from scanlab.problem import Direction, ScanInputs, ScanOutput
from scanlab.report.style import applied, sheet
from scanlab.report.units import three_digits

DIRECTIONS = ("forward", "backward")


class Listener:
    """A scan that notes the mean step size of each token: (batch, length) for each direction of each layer."""

    def __init__(self) -> None:
        self.heard: list[tuple[Tensor, ...]] = []

    def __call__(
        self, *inputs: ScanInputs, delta_softplus: bool = True, direction: Direction = "forward"
    ) -> ScanOutput:
        """The scan of this machine's choice."""
        self.heard.append(tuple(F.softplus(each.delta + each.delta_bias[:, None]).mean(1) for each in inputs))
        return scan(*inputs, delta_softplus=delta_softplus, direction=direction)


@torch.inference_mode()
def step_maps(model: VisionMamba, images: Tensor) -> NDArray[np.float32]:
    """Mean step sizes (layers, directions, batch, rows, columns) of the patches, without the class token."""
    model.scan = listener = Listener()
    model(images)
    steps = torch.stack([torch.stack(layer) for layer in listener.heard])
    class_tokens = [model.patch_embed.num_patches // 2] if model.num_tokens else []
    patches = [token for token in range(steps.shape[-1]) if token not in class_tokens]
    return steps[..., patches].unflatten(-1, model.patch_embed.grid_size).numpy()


@applied()
def picture(
    shown: Sequence[NDArray[np.float32]], maps: NDArray[np.float32], layers: Sequence[int], title: str, caption: str
) -> Figure:
    """Each image in a row of its own, followed by its maps: the layers forward, then backward."""
    columns = 1 + len(DIRECTIONS) * len(layers)
    tile = 7.6 / columns
    subtitle = "Mean step size of each patch, as a multiple of the mean over its map; bright patches are written down."
    made = sheet(7.6, len(shown) * tile + 0.9, title, subtitle, caption, columns, len(shown))
    relative = maps[list(layers)] / maps[list(layers)].mean(axis=(-2, -1), keepdims=True)
    low, high = np.quantile(relative, (0.01, 0.99))
    for row, image in enumerate(shown):
        own = made.axes[row * columns : (row + 1) * columns]
        own[0].imshow(image, cmap="gray_r" if image.ndim == 2 else None)
        panels = [(way, place) for way in range(len(DIRECTIONS)) for place in range(len(layers))]
        for axes, (way, place) in zip(own[1:], panels, strict=True):
            heat = axes.imshow(relative[place, way, row], cmap="magma", vmin=low, vmax=high)
            if row == 0:
                axes.set_title(f"{DIRECTIONS[way]}\nlayer {layers[place] + 1}", size=7.5)
        for axes in own:
            axes.set_axis_off()
    bar = made.figure.colorbar(heat, ax=made.axes, location="bottom", fraction=0.03, pad=0.02, shrink=0.5)
    bar.set_label("times the mean step size", size=8.0)
    return made.figure


def summary(maps: NDArray[np.float32], ink: NDArray[np.float32]) -> pd.DataFrame:
    """How steps on inked patches compare with those on blank paper, for each layer and direction."""
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
    text = numbers.astype(object).map(lambda value: value if isinstance(value, str) else three_digits(value))
    one_of_each = [int((digits.labels == label).nonzero()[0]) for label in range(10)]
    written = list(digits.images[one_of_each, 0].numpy())
    title = "Step sizes of the trained digits model"
    pictures = {"digits": picture(written, maps[:, :, one_of_each], range(len(maps)), title, caption)}

    model = open_model(weights, img_size=size) if weights else trained_like_(vim_tiny(img_size=size)).eval()
    photographs = torch.stack([prepare(sample_photograph(name), size) for name in SAMPLES])
    pixels = photographs * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]
    shown = list(pixels.clamp(0, 1).permute(0, 2, 3, 1).numpy())
    title = f"Step sizes of Vim-tiny, {weights or 'trained-like weights'}"
    pictures["photographs"] = picture(shown, step_maps(model, photographs), (0, 7, 15, 23), title, caption)
    common.write_page(out, __doc__, caption, pictures, {"Steps of the digits model": text}, numbers)


if __name__ == "__main__":
    typer.run(main)
