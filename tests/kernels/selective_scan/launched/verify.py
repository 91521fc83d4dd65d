"""Launch every GPU kernel through Triton's own launcher on a driver that runs nothing; the argument is its folder.

A kernel's arguments are nested tuples with absent members, which the interpreter takes as they are, but a launcher is C
that Triton writes for them. Triton finds the driver where TRITON_LIBCUDA_PATH says. Everything is called twice: the
second call has to launch what the first one did without asking Triton, which inspects every argument.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils

from scanlab.contract.problem import ScanInputs, ScanProblem, make_inputs
from scanlab_kernels.add_norm import triton as add_norm
from scanlab_kernels.causal_conv1d.triton import ops as conv
from scanlab_kernels.gpu import version
from scanlab_kernels.selective_scan.triton import backend
from scanlab_kernels.state_update import triton as state_update

STUB = ctypes.CDLL(f"{sys.argv[1]}/libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
Grid = list[tuple[int, int]]
taken: list[object] = []
asked: list[str] = []


class Launcher(CudaLauncher):
    """Triton's launcher, which also records its arguments."""

    def __call__(self, *arguments: Any) -> None:
        """Launch."""
        taken.append(look(arguments))
        super().__call__(*arguments)


class Hopper(CudaDriver):
    """Driver of a GPU of compute capability 9.0."""

    def __init__(self) -> None:
        self.utils, self.launcher_cls = CudaUtils(), Launcher
        self.get_current_device = lambda: 0
        self.get_device_capability = lambda device=0: (9, 0)
        self.get_current_stream = lambda device=0: 0


def look(argument: object) -> object:
    """Return all of an argument but the address of a tensor."""
    if isinstance(argument, tuple):
        return tuple(map(look, argument))
    if isinstance(argument, Tensor):
        return argument.dtype, argument.numel(), argument.data_ptr() % 16
    return argument if isinstance(argument, int | float | str | bytes | None) else type(argument)


def launched() -> Grid:
    """Return the programs and threads of every launch since the last call."""
    count = ctypes.c_uint.in_dll(STUB, "launches")
    rows = [(ctypes.c_uint * 1024).in_dll(STUB, name)[: count.value] for name in ("programs", "threads")]
    count.value = 0
    return list(zip(*rows, strict=True))


def twice(call: Callable[[], object]) -> Grid:
    """Return the launches of a call, which have to be the same when it is made again, without asking Triton."""
    grids, arguments, questions = [], [], []
    for _ in range(2):
        taken.clear()
        asked.clear()
        call()
        grids.append(launched())
        arguments.append(list(taken))
        questions.append(len(asked))
    assert grids[0] == grids[1]
    assert arguments[0] == arguments[1] != []
    assert questions == [len(grids[0]), 0]
    return grids[0]


def scan(problem: ScanProblem, inputs: tuple[ScanInputs, ...]) -> Grid:
    """Return the launches of a scan and, where it has gradients, of its backward pass, in 4 segments each."""
    config = backend.backend.space.defaults | {"segments": 4, "backward_segments": 4, "chunk": 4}
    built = backend.make(problem, config)
    leaves = [tensor.requires_grad_() for each in inputs for tensor in each.tensors().values()]

    def call() -> None:
        with torch.set_grad_enabled(problem.gradients):
            out = built(*inputs).out
            if problem.gradients:
                torch.autograd.grad(out.sum(), leaves)

    return twice(call)


def in_threads(problem: ScanProblem) -> list[object]:
    """Return the launches of calls of one new kind from several threads at once, in any order."""
    built, inputs = backend.make(problem, backend.backend.space.defaults), make_inputs(problem)
    taken.clear()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: built(*inputs), range(32)))
    launched()
    return list(taken)


def sliced(inputs: ScanInputs) -> ScanInputs:
    """Return `inputs` with B and C as slices of a projection's output, which the kernels read in place."""
    batch, state, length = inputs.B.shape
    rows = torch.randn(batch, length, 12 + 2 * state)
    return inputs._replace(B=rows[..., 12 : 12 + state].mT, C=rows[..., 12 + state :].mT)


def main() -> None:
    """Launch every kernel, and compare the grids."""
    triton.runtime.driver.set_active(Hopper())
    run = triton.runtime.JITFunction.run

    def counted(kernel: Any, *arguments: Any, **named: Any) -> Any:
        asked.append(kernel.__name__)
        return run(kernel, *arguments, **named)

    triton.runtime.JITFunction.run = counted
    two = ScanProblem(batch=2, dim=64, length=16, layout="dim_last", gradients=True, direction="bidirectional")
    whole = [(32, 32)] * 2  # two blocks of channels, four segments, a batch of two, two directions
    moved = [(4, 32)]  # B and C of both directions, 32 rows of 16 each
    assert scan(two, make_inputs(two)) == (moved + whole) * 2
    assert scan(two, tuple(map(sliced, make_inputs(two)))) == whole * 2
    bare = two.replace(direction="forward", gradients=False, has_initial_state=True)
    if version.compiles_absent_members():
        bare = bare.replace(has_D=False, has_z=False, has_delta_bias=False)
    assert scan(bare, make_inputs(bare)) == [(2, 32)] + [(16, 32)] * 2
    found = in_threads(bare.replace(length=7))
    assert len(found) == 64
    assert len({str(arguments) for arguments in found}) == 2  # of B and C moved, and of the scan

    x, taps, vector = torch.randn(2, 8, 64).mT, torch.randn(64, 4), torch.randn(64)
    absent = (None,) * 5
    assert twice(lambda: conv.causal_conv1d(x, taps, vector, taps, None, None, None, True)) == [(2, 32)]
    assert twice(lambda: conv.causal_conv1d_backward(x, None, x, taps, *absent, True)) == [(2, 32)]
    rows = torch.randn(3, 64)
    total = torch.empty_like(rows)
    assert twice(lambda: add_norm.add_norm(rows, None, vector, None, 1e-5, True, True)) == [(3, 32)]
    assert twice(lambda: add_norm.add_norm_backward(rows, rows, total, vector, 1e-5, True)) == [(1, 32)]
    token, state, held = torch.randn(2, 64), torch.randn(2, 64, 16), torch.randn(2, 64, 4)
    indices = torch.tensor([1, 0], dtype=torch.int32)
    assert twice(lambda: conv.causal_conv1d_update(token, held, taps, None, None, indices, True)) == [(4, 32)]
    A, projection = torch.randn(64, 16), torch.randn(2, 16)
    step = (state, token, token, A, projection, projection, vector, None, None, True, indices, False)
    assert twice(lambda: state_update.selective_state_update(*step)) == [(4, 32)]


if __name__ == "__main__":
    main()
