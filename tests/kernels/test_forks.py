"""Forks of a process whose threads scan for the first time: each child scans too."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scanlab_kernels.cpu import extension

# Children are forked while the threads decide, load the library and measure what a second thread costs.
PROGRAM = """
import os, signal, threading, time
import torch
from scanlab import selective_scan_fn  # here: a child would wait for a module that another thread was importing

u, delta = torch.randn(2, 1, 64, 300)
B, C = torch.randn(2, 1, 16, 300)
torch.set_num_threads(2)

def scan():
    return selective_scan_fn(u, delta, -torch.ones(64, 16), B, C, backend="native")

def scan_on():
    while not over:
        scan()

over = False
threads = [threading.Thread(target=scan_on, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
ends = []
for _ in range(20):
    time.sleep(0.02)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        scan()
        os._exit(0)
    ends.append(os.waitpid(child, 0)[1])
over = True
for thread in threads:
    thread.join()
print(ends)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no forks")
def test_a_fork_at_any_moment_scans() -> None:
    if extension.unavailable() is not None:
        pytest.skip("the native ops cannot be compiled here")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == f"{[0] * 20}\n"
