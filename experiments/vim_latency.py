"""Vision Mamba spends little beyond its matrix products, and far less than with the loop in PyTorch.

One image of 224 x 224 through Vim-tiny. The matrix products are recorded in one pass, with their tensors, and
repeated by themselves. The official composition is the reference loop with convolutions and norms in PyTorch.
All are timed in the same rounds; ratios are taken round by round; the fastest calls are shown beside the medians,
for a neighbour can only add to them.

    python experiments/vim_latency.py --rounds 40
"""

from pathlib import Path
from typing import Annotated, Any

import common
import numpy as np
import pandas as pd
import torch
import typer
from torch.utils._python_dispatch import TorchDispatchMode

import scanlab
from scanlab.deploy.dispatch import dispatcher
from scanlab.mixer.native import in_torch
from scanlab.report.units import three_digits, times

PRODUCTS = ("addmm", "mm", "bmm", "linear", "_linear_pointwise", "convolution", "conv2d")
ASKED = {"over products": "1.6, aim 1.4", "official over ours": "25, aim 40"}


class Products(TorchDispatchMode):
    """Records the matrix products that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in PRODUCTS:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def again(self) -> None:
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


def calls(size: int, dtype: torch.dtype, backend: str | None) -> dict[str, common.Call]:
    """A forward pass of ours, its matrix products, and the official composition, on one image."""
    torch.manual_seed(0)
    ours = scanlab.vim_tiny(img_size=size, scan=backend).eval().to(dtype)
    official = scanlab.vim_tiny(img_size=size, scan="reference").eval().to(dtype)
    image = torch.rand(1, 3, size, size, dtype=dtype)

    def in_pytorch() -> None:
        with in_torch():
            official(image)

    with torch.inference_mode(), Products() as products:
        ours(image)
    assert products.calls
    free = torch.inference_mode()
    return {"ours": free(lambda: ours(image)), "products": free(products.again), "official": free(in_pytorch)}


def measured(size: int, rounds: int, backend: str | None) -> pd.DataFrame:
    """A row for each ratio and dtype: quartiles of the ratio over rounds, and the ratio of the fastest calls."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        every = calls(size, dtype, backend)
        slow = {"official": every.pop("official")}
        taken = common.interleaved(every, rounds, rounds, 0.0)
        taken |= common.interleaved(slow, 3, 3, 0.0)
        ours = taken["ours"]
        for name, ratio, fastest in (
            ("over products", ours / taken["products"], ours.min() / taken["products"].min()),
            ("official over ours", taken["official"] / np.median(ours), taken["official"].min() / ours.min()),
        ):
            row = {"measured": name, "dtype": str(dtype).removeprefix("torch."), "asked": ASKED[name]}
            row |= dict(zip(("quartile1", "median", "quartile3"), np.quantile(ratio, (0.25, 0.5, 0.75)), strict=True))
            rows.append(
                row | {"fastest": fastest, "ours_ms": 1e3 * np.median(ours), "ours_fastest_ms": 1e3 * ours.min()}
            )
    return pd.DataFrame(rows)


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of each comparison.")] = 40,
    size: Annotated[int, typer.Option(help="Side of the image, in pixels.")] = 224,
    backend: Annotated[str | None, typer.Option(help="Vim's scan; this machine's choice by default.")] = None,
    out: Path = common.RESULTS / "vim_latency",
) -> None:
    """Measure and write the table."""
    caption = common.setting()
    frame = measured(size, rounds, backend)
    caption += f"; {rounds} rounds; scan by {backend or common.served_by(dispatcher(None))}"
    ratios, milliseconds = ["quartile1", "median", "quartile3", "fastest"], ["ours_ms", "ours_fastest_ms"]
    text = frame.assign(
        **{c: frame[c].map(times) for c in ratios}, **{c: frame[c].map(three_digits) for c in milliseconds}
    )
    common.write_page(out, __doc__, caption, {}, {"Vim-tiny": text}, frame)
    print(text.to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
