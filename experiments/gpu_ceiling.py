"""What a GPU can do at most, measured: bytes copied in a second, and exponentials of its special-function unit."""

import gpu_timing
import numpy as np
import torch
import triton
import triton.language as tl

WARPS = 4
VALUES = 16  # of one thread, so that none waits for another
TURNS = 4096


@triton.jit
def exponentials(out, turns, SIZE: tl.constexpr):
    """`turns` times 2^-x of every value; it settles at 0.64 and never leaves the range of float32."""
    at = tl.arange(0, SIZE)
    x = at * 0.001
    for _ in tl.range(0, turns):
        x = tl.exp2(x * -1.0)
    tl.store(out + tl.program_id(0) * SIZE + at, x)


def exponential_call() -> tuple[gpu_timing.Call, int]:
    """A call that computes nothing but exponentials, and how many: eight programs for each multiprocessor."""
    programs, size = 8 * torch.cuda.get_device_properties().multi_processor_count, 32 * WARPS * VALUES
    out = torch.empty(programs * size, device="cuda")
    return lambda: exponentials[(programs,)](out, TURNS, SIZE=size, num_warps=WARPS), programs * size * TURNS


def ceilings_s() -> tuple[float, float]:
    """Seconds of a byte copied and of an exponential, at best."""
    copy, exponential = (
        float(np.median(gpu_timing.times_s([call]).gpu_s)) / count
        for call, count in (gpu_timing.copy_call(), exponential_call())
    )
    return copy, exponential
