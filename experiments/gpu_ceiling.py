"""What a GPU can do at most, measured: bytes copied in a second, and exponentials of its special-function unit."""

import torch
import triton
import triton.language as tl

WARPS = 4
VALUES = 16  # of one thread, so that none waits for another
TURNS = 4096
COPIED_BYTES = 2**30


@triton.jit
def exponentials(out, turns, SIZE: tl.constexpr):
    """`turns` times 2^-x of every value; it settles at 0.64 and never leaves the range of float32."""
    at = tl.arange(0, SIZE)
    x = at * 0.001
    for _ in tl.range(0, turns):
        x = tl.exp2(x * -1.0)
    tl.store(out + tl.program_id(0) * SIZE + at, x)


def exponential_calls() -> tuple[torch.cuda.Event | object, int]:
    """A call that computes nothing but exponentials, and how many: eight programs for each multiprocessor."""
    programs, size = 8 * torch.cuda.get_device_properties().multi_processor_count, 32 * WARPS * VALUES
    out = torch.empty(programs * size, device="cuda")
    return lambda: exponentials[(programs,)](out, TURNS, SIZE=size, num_warps=WARPS), programs * size * TURNS


def copy_calls() -> tuple[object, int]:
    """A call that copies, and how many bytes it reads and writes."""
    one = torch.empty(COPIED_BYTES // 2, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(one)
    return lambda: other.copy_(one), COPIED_BYTES
