"""Limits of a GPU, measured: bytes copied per second, and exponentials of its special-function unit per second."""

import gpu_timing
import numpy as np
import torch
import triton
import triton.language as tl

WARPS = 4
VALUES = 16  # of one thread, independent of each other
ITERATIONS = 4096


@triton.jit
def exponentials(out, iterations, SIZE: tl.constexpr):
    """Replace every value by 2^-x, `iterations` times; it converges to 0.64 and stays within the range of float32."""
    at = tl.arange(0, SIZE)
    x = at * 0.001
    for _ in tl.range(0, iterations):
        x = tl.exp2(x * -1.0)
    tl.store(out + tl.program_id(0) * SIZE + at, x)


def exponential_call() -> tuple[gpu_timing.Call, int]:
    """Return a call that computes exponentials on eight programs per multiprocessor, and their number."""
    programs, size = 8 * torch.cuda.get_device_properties().multi_processor_count, 32 * WARPS * VALUES
    out = torch.empty(programs * size, device="cuda")
    return lambda: exponentials[(programs,)](out, ITERATIONS, SIZE=size, num_warps=WARPS), programs * size * ITERATIONS


def seconds_each() -> tuple[float, float]:
    """Return the least seconds per byte copied and per exponential."""
    copy, exponential = (
        float(np.median(gpu_timing.times_s([call]).gpu_s)) / count
        for call, count in (gpu_timing.copy_call(), exponential_call())
    )
    return copy, exponential
