"""Vision Mamba spends little beyond its matrix products, and far less than with the loop in PyTorch.

One image of 224 x 224 through Vim-tiny. The matrix products, the embedding of patches among them and the depthwise
convolutions not, are recorded in one pass that leaves them to torch, with their tensors, and repeated by themselves:
as torch computes them, and by oneDNN with weights packed beforehand. The official composition runs the operations of
the official code without CUDA, its reference loop among them, on the same weights in float32. Last, the model in
bfloat16 beside itself in float32.

All are timed in the same rounds, each called again and again as a server calls it; ratios are taken round by round;
the fastest rounds are shown beside the medians, for a neighbour can only add to them. Virtual CPUs are moved: before
each round it is measured how long a cache line takes from one to the other, for layers hand their tensors from thread
to thread, which repeated products do not.

    python experiments/vim_latency.py --rounds 40
"""

import random
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import common
import pandas as pd
import torch
import typer
from handover import NEAR_NS, handover_ns
from torch.utils._python_dispatch import TorchDispatchMode

import scanlab
from scanlab.integrations import mamba_ssm
from scanlab.report.formatting import three_digits, times
from scanlab.runtime import ops as mixer
from scanlab.runtime.dispatch import dispatcher
from scanlab_kernels.linear import onednn

LAYERS = ("addmm", "mm", "linear")
PRODUCTS = (*LAYERS, "bmm", "convolution", "conv2d")
SPAN_S = 0.2  # of calls in a row, whose median counts
TOLERANCE = 1e-4  # of logits, which are about 1
SLOWER = 3  # the official composition gets one round in this many
ASKED = {
    "over products": "1.6, aim 1.3",
    "over packed products": "",
    "official over ours": "25, aim 40",
    "over float32": "0.65, aim 0.4",
}


class Products(TorchDispatchMode):
    """Records the matrix products that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        depthwise = "conv" in name and args[1].shape[1] != args[0].shape[1]
        if name in PRODUCTS and not depthwise:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def again(self) -> common.Call:
        """Return a call of all products, as torch computes them."""

        def every() -> None:
            for func, args, kwargs in self.calls:
                func(*args, **kwargs)

        return every

    def packed(self) -> common.Call:
        """Return a call of all products, those of linear layers by oneDNN with packed weights."""
        others = [call for call in self.calls if call[0].overloadpacket.__name__ not in LAYERS]
        layers = [_packed(*call[:2]) for call in self.calls if call[0].overloadpacket.__name__ in LAYERS]

        def every() -> None:
            for func, args, kwargs in others:
                func(*args, **kwargs)
            for x, weight, bias in layers:
                torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

        return every


def _packed(func: Any, args: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the input, the packed weight and the bias of a recorded product of a linear layer."""
    name = func.overloadpacket.__name__
    bias, x, weight = args if name == "addmm" else (args[2] if len(args) > 2 else None, *args[:2])
    weight = weight if name == "linear" else weight.t()
    return x, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()), bias


def official_vim(size: int, like: scanlab.VisionMamba) -> torch.nn.Module:
    """Return Vision Mamba as the official code runs without CUDA, with the weights of `like`."""
    mamba_ssm.install()
    import vim_by_name  # what it imports by the names of mamba_ssm is there only now

    classes, dim = like.head.weight.shape
    official = vim_by_name.Vim(size, dim, len(like.layers), classes, mixer=vim_by_name.PlainMamba)
    official.load_state_dict(like.state_dict())
    return official.eval()


def calls(size: int, dtype: torch.dtype, backend: str | None) -> dict[str, common.Call]:
    """Return a forward pass and its matrix products on one image; in float32 the official composition too."""
    torch.manual_seed(0)
    ours = scanlab.vim_tiny(img_size=size, scan=backend).eval().to(dtype)
    image = torch.rand(1, 3, size, size, dtype=dtype)
    free = torch.inference_mode()
    with free, mixer.in_torch(), Products() as products:
        logits = ours(image)
    assert len(products.calls) > len(ours.layers)
    found: dict[str, common.Call] = {"ours": free(lambda: ours(image)), "products": free(products.again())}
    if onednn.unavailable() is None:
        found["packed"] = free(products.packed())
    if dtype == torch.float32:
        official = official_vim(size, ours)
        found["official"] = free(lambda: official(image))
        torch.testing.assert_close(found["official"](), logits, rtol=0.0, atol=TOLERANCE)
    return found


def in_a_row_s(call: common.Call) -> float:
    """Return the median time in seconds of consecutive calls, after one that is not counted."""
    call()
    taken: list[float] = []
    while sum(taken) < SPAN_S:
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def in_rounds(every: dict[str, common.Call], rounds: int) -> pd.DataFrame:
    """Return the seconds of each call, a row for each round, and the latency between CPUs before it."""
    taken = []
    for _ in range(rounds):
        apart_ns = handover_ns()
        times_s = {name: in_a_row_s(every[name]) for name in random.sample(list(every), len(every))}
        taken.append(times_s | {"handover_ns": apart_ns})
    return pd.DataFrame(taken)


def measured(size: int, rounds: int, backend: str | None) -> pd.DataFrame:
    """Return a row for each ratio and dtype: of all rounds, and split by the latency between CPUs."""
    rows, models = [], {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        every = calls(size, dtype, backend)
        official = every.pop("official", None)
        models[name] = every["ours"]
        beside = in_rounds(every, rounds)
        rows += _rows("over products", name, beside, "ours", "products")
        if "packed" in every:
            rows += _rows("over packed products", name, beside, "ours", "packed")
        if official is not None:
            beside = in_rounds({"official": official, "ours": every["ours"]}, max(1, rounds // SLOWER))
            rows += _rows("official over ours", name, beside, "official", "ours")
    beside = in_rounds(models, rounds).assign(ours=lambda taken: taken.bfloat16)
    return pd.DataFrame(rows + _rows("over float32", "bfloat16", beside, "bfloat16", "float32"))


def _rows(measured: str, dtype: str, taken: pd.DataFrame, one: str, other: str) -> list[dict[str, object]]:
    """Return a row for the ratio of two calls in all rounds, and one each for those with near and with far CPUs."""
    near = taken.handover_ns <= NEAR_NS
    rows = []
    for cpus, some in (("", taken), ("near", taken[near]), ("far", taken[~near])):
        if some.empty or (cpus and len(some) == len(taken)):
            continue
        quartiles = (some[one] / some[other]).quantile((0.25, 0.5, 0.75))
        row = {"measured": measured, "dtype": dtype, "asked": ASKED[measured], "CPUs": cpus}
        row |= dict(zip(("quartile1", "median", "quartile3"), quartiles, strict=True))
        row |= {"fastest": some[one].min() / some[other].min(), "ours_ms": 1e3 * some.ours.median()}
        row |= {"ours_fastest_ms": 1e3 * some.ours.min(), "handover_ns": some.handover_ns.median()}
        rows.append(row | {"rounds": len(some)})
    return rows


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
    ratios, others = ["quartile1", "median", "quartile3", "fastest"], ["ours_ms", "ours_fastest_ms", "handover_ns"]
    text = frame.assign(**{c: frame[c].map(times) for c in ratios}, **{c: frame[c].map(three_digits) for c in others})
    text["rounds"] = frame.rounds.map(str)
    common.write_page(out, __doc__, caption, {}, {"Vim-tiny": text}, frame)
    print(text.to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
