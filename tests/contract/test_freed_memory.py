"""A process that serves a scan keeps freed memory for its next calls."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have their own thresholds")

# Tells whether a freed block of 30 MiB would be kept: glibc then takes the block from its heap, and does not map it.
IS_KEPT = """
import ctypes, torch
{serve}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
address = libc.malloc(30 << 20)
heap = next(line for line in open("/proc/self/maps") if line.endswith("[heap]\\n")).split()[0]
low, high = (int(end, 16) for end in heap.split("-"))
print(low <= address < high)
"""
SERVE = """
import scanlab
u = torch.ones(1, 2, 3)
scanlab.selective_scan_fn(u, u, -torch.ones(2, 1), torch.ones(1, 1, 3), torch.ones(1, 1, 3), backend="reference")
"""


def is_kept(serve, **variables):
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    script = [sys.executable, "-c", IS_KEPT.format(serve=serve)]
    return subprocess.run(script, env=env, capture_output=True, text=True, check=True).stdout.splitlines()[-1] == "True"


def test_freed_memory_is_kept_where_scans_are_served():
    assert not is_kept("")  # what glibc does by itself
    assert is_kept(SERVE)


def test_thresholds_of_the_environment_stay():
    assert not is_kept(SERVE, MALLOC_MMAP_THRESHOLD_="131072")
