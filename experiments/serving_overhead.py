"""Claim: serving costs at most 40 us of Python for each layer of Vim-tiny, and 10 us beside the kernel of a small scan.

    python experiments/serving_overhead.py

Both are measured on sizes so small that the kernels take next to nothing: a Vim with the structure of Vim-tiny and 16
channels, on 37 tokens; a scan of (1, 8, 40, 4). The time of a layer is that of the whole model by its 24 layers, less
the ops of a layer called by themselves with the same tensors; the time beside the kernel is that of `selective_scan_fn`
less the same op called by `torch.ops`. Each figure is the shortest of many runs, which other programs cannot lengthen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import scanlab
from scanlab.contract.problem import ScanProblem, make_inputs

LAYERS = 24
RUNS = 300


class Calls(TorchDispatchMode):
    """Record every op that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record a call and make it."""
        self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def shortest_s(call: Callable[[], object], runs: int = RUNS) -> float:
    """Return the seconds of the shortest of many runs."""
    taken = []
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def again(call: Callable[[], object]) -> Callable[[], None]:
    """Return a function that makes the ops of `call` once more, with the same tensors."""
    with Calls() as recorded:
        call()

    def run() -> None:
        for func, args, kwargs in recorded.calls:
            func(*args, **kwargs)

    return run


def overhead_us(call: Callable[[], object]) -> tuple[float, float]:
    """Return the microseconds of a call, and of its ops by themselves."""
    call()
    ops = again(call)
    return 1e6 * shortest_s(call), 1e6 * shortest_s(ops)


def main() -> None:
    """Print both figures."""
    torch.set_num_threads(1)
    model = scanlab.VisionMamba(img_size=96, embed_dim=16, depth=LAYERS, num_classes=10).eval()
    image = torch.rand(1, 3, 96, 96)
    problem = ScanProblem(batch=1, dim=8, length=40, state=4)
    (inputs,) = make_inputs(problem)
    with torch.inference_mode():
        whole, ops = overhead_us(lambda: model(image))
        print(
            f"a layer: {whole / LAYERS:.0f} us, its ops {ops / LAYERS:.0f} us, Python {(whole - ops) / LAYERS:.0f} us"
        )
        whole, ops = overhead_us(lambda: scanlab.selective_scan_fn(*inputs[:-1], delta_softplus=True))
        print(f"a small scan: {whole:.1f} us, its ops {ops:.1f} us, beside them {whole - ops:.1f} us")


if __name__ == "__main__":
    main()
