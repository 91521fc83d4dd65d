"""Vision Mamba spends little beyond its matrix products, and far less than with the loop in PyTorch.

One image of 224 x 224 through Vim-tiny. The matrix products are recorded in one pass, with their tensors, and
repeated by themselves. The official composition runs the operations of the official code without CUDA, its reference
loop among them, on the same weights in float32. All are timed in the same rounds; ratios are taken round by round; the
fastest calls are shown beside the medians, for a neighbour can only add to them.

    python experiments/vim_latency.py --rounds 40
"""

from pathlib import Path
from typing import Annotated, Any

import common
import numpy as np
import pandas as pd
import torch
import typer
from handover import handover
from torch.utils._python_dispatch import TorchDispatchMode

import scanlab
from scanlab.deploy.dispatch import dispatcher
from scanlab.integrations import mamba_ssm
from scanlab.report.units import three_digits, times

PRODUCTS = ("addmm", "mm", "bmm", "linear", "_linear_pointwise", "convolution", "conv2d")
TOLERANCE = 1e-4  # of logits, which are about 1
SLOW_ROUNDS = 7
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


def official_vim(size: int, like: scanlab.VisionMamba) -> torch.nn.Module:
    """Vision Mamba as the official code runs without CUDA, with the weights of `like`."""
    mamba_ssm.install()
    import vim_by_name  # what it imports by the names of mamba_ssm is there only now

    classes, dim = like.head.weight.shape
    official = vim_by_name.Vim(size, dim, len(like.layers), classes, mixer=vim_by_name.PlainMamba)
    official.load_state_dict(like.state_dict())
    return official.eval()


def calls(size: int, dtype: torch.dtype, backend: str | None) -> dict[str, common.Call]:
    """A forward pass of ours and its matrix products, on one image; in float32 the official composition too."""
    torch.manual_seed(0)
    ours = scanlab.vim_tiny(img_size=size, scan=backend).eval().to(dtype)
    image = torch.rand(1, 3, size, size, dtype=dtype)
    with torch.inference_mode(), Products() as products:
        logits = ours(image)
    assert products.calls
    free = torch.inference_mode()
    found: dict[str, common.Call] = {"ours": free(lambda: ours(image)), "products": free(products.again)}
    if dtype == torch.float32:
        official = official_vim(size, ours)
        found["official"] = free(lambda: official(image))
        torch.testing.assert_close(found["official"](), logits, rtol=0.0, atol=TOLERANCE)
    return found


def measured(size: int, rounds: int, backend: str | None) -> pd.DataFrame:
    """A row for each ratio and dtype: quartiles of the ratio over rounds, and the ratio of the fastest calls."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        every = calls(size, dtype, backend)
        slow = {name: every[name] for name in ("official", "ours") if "official" in every}
        every.pop("official", None)
        taken = common.interleaved(every, rounds, rounds, 0.0)
        ours = taken["ours"]
        compared = [("over products", ours / taken["products"], ours.min() / taken["products"].min())]
        if slow:
            beside = common.interleaved(slow, SLOW_ROUNDS, SLOW_ROUNDS, 0.0)
            fastest = beside["official"].min() / min(beside["ours"].min(), ours.min())
            compared.append(("official over ours", beside["official"] / beside["ours"], fastest))
        for name, ratio, fastest in compared:
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
    caption += f"; {rounds} rounds; {handover()}; scan by {backend or common.served_by(dispatcher(None))}"
    ratios, milliseconds = ["quartile1", "median", "quartile3", "fastest"], ["ours_ms", "ours_fastest_ms"]
    text = frame.assign(
        **{c: frame[c].map(times) for c in ratios}, **{c: frame[c].map(three_digits) for c in milliseconds}
    )
    common.write_page(out, __doc__, caption, {}, {"Vim-tiny": text}, frame)
    print(text.to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
