"""Ways to make a call: threads, instruction set, products and gradients, all drawn from the seed of the call."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fuzz.draws import Draw
from helpers.instruction_sets import PRODUCT_SETS
from scanlab.runtime import dispatch

PRODUCTS = ("native", "onednn", "torch")
GRADIENTS = (torch.enable_grad, torch.enable_grad, torch.no_grad, torch.inference_mode)


@contextmanager
def mode(seed: int) -> Iterator[str]:
    """Make the calls inside this block in the way that the seed stands for; yield its name."""
    draw = Draw(seed)
    chosen = {"SCANLAB_ISA": draw.pick(PRODUCT_SETS), "SCANLAB_LINEAR": draw.pick(PRODUCTS)}
    threads, gradients = draw.randint(1, 3), draw.pick(GRADIENTS)
    before = {name: os.environ.get(name) for name in chosen}, torch.get_num_threads()
    try:
        os.environ.update(chosen)
        torch.set_num_threads(threads)
        dispatch.clear()
        with gradients():
            yield f"{threads} threads, {gradients.__name__}, " + ", ".join(f"{k}={v}" for k, v in chosen.items())
    finally:
        for name, value in before[0].items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        torch.set_num_threads(before[1])
        dispatch.clear()
