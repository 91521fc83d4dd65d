"""Every GPU kernel through Triton's own launcher, onto a driver that runs nothing: the folder with it is the argument.

A kernel's arguments are nested tuples with absent members, which the interpreter takes as they are, but a launcher is C
that Triton writes for them. Triton finds the driver where TRITON_LIBCUDA_PATH says.
"""

from __future__ import annotations

import ctypes
import sys

import torch
import triton
from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils

from scanlab.kernels import triton as backend
from scanlab.kernels import triton_ops
from scanlab.mixer import triton_ops as mixer_ops
from scanlab.problem import ScanInputs, ScanProblem, make_inputs

STUB = ctypes.CDLL(f"{sys.argv[1]}/libcuda.so.1", mode=ctypes.RTLD_GLOBAL)


class Hopper(CudaDriver):
    """A GPU of compute capability 9.0 that is always there."""

    def __init__(self) -> None:
        self.utils, self.launcher_cls = CudaUtils(), CudaLauncher
        self.get_current_device = lambda: 0
        self.get_device_capability = lambda device=0: (9, 0)
        self.get_current_stream = lambda device=0: 0


def launched() -> list[tuple[int, int]]:
    """The programs and threads of every launch since the last call."""
    count = ctypes.c_uint.in_dll(STUB, "launches")
    rows = [(ctypes.c_uint * 64).in_dll(STUB, name)[: count.value] for name in ("programs", "threads")]
    count.value = 0
    return list(zip(*rows, strict=True))


def scan(problem: ScanProblem) -> list[tuple[int, int]]:
    """The launches of a scan and, where it has gradients, of its way back, of 4 segments each."""
    inputs = make_inputs(problem)
    config = backend.backend.space.defaults | {"segments": 4, "back_segments": 4, "chunk": 4}
    second = inputs[1] if len(inputs) == 2 else (None,) * len(ScanInputs._fields)
    settings = (*inputs[0], *second, True, False, backend.tuning(config))
    if problem.gradients:
        leaves = [tensor.requires_grad_() for each in inputs for tensor in each.tensors().values()]
        torch.autograd.grad(triton_ops.scan_with_checkpoints(*settings)[0].sum(), leaves)
    else:
        triton_ops.scan(*settings)
    return launched()


def main() -> None:
    """Launch every kernel, and hold the grids to what they have to be."""
    triton.runtime.driver.set_active(Hopper())
    two = ScanProblem(batch=2, dim=64, length=16, layout="dim_last", gradients=True, direction="bidirectional")
    assert scan(two) == [(32, 32)] * 4  # two blocks of channels, four segments, a batch of two, two directions
    bare = two.replace(
        direction="forward", gradients=False, has_D=False, has_z=False, has_delta_bias=False, has_initial_state=True
    )
    assert scan(bare) == [(16, 32)] * 2

    x, taps, vector = torch.randn(2, 8, 64).mT, torch.randn(64, 4), torch.randn(64)
    mixer_ops.conv(x, taps, vector, taps, None, None, None, True)
    mixer_ops.conv_backward(x, None, x, taps, None, None, None, None, None, True)
    assert launched() == [(2, 32), (2, 32)]
    rows = torch.randn(3, 64)
    total = mixer_ops.add_norm(rows, None, vector, None, 1e-5, True, True)[1]
    mixer_ops.norm_backward(rows, rows, total, vector, 1e-5, True)
    assert launched() == [(3, 32), (1, 32)]
    token, state = torch.randn(2, 64), torch.randn(2, 64, 16)
    indices = torch.tensor([1, 0], dtype=torch.int32)
    mixer_ops.conv_update(token, torch.randn(2, 64, 4), taps, None, None, indices, True)
    A, projection = torch.randn(64, 16), torch.randn(2, 16)
    mixer_ops.state_update(state, token, token, A, projection, projection, vector, None, None, True, indices, False)
    assert launched() == [(4, 32), (4, 32)]


if __name__ == "__main__":
    main()
