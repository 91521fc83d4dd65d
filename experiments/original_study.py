"""The original study's implementations as backends, each step on top of the one before; CLAIMS has its claims.

Its data lie as the reference loop lays them out, where a time step is scattered in memory, until the last step.
"""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from scanlab.contract.backend import WHOLE_CONTRACT, Backend, ScanFn
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config, Space
from scanlab_kernels.selective_scan import bidirectional as directions
from scanlab_kernels.selective_scan import cpp_torch
from scanlab_kernels.selective_scan import discretize as pointwise
from scanlab_kernels.selective_scan import recurrence as recurrence


def two_phases(name: str, solve: recurrence.Solver) -> Backend:
    """Return a backend that computes all states by `solve`, then all outputs, in the reference loop's layout."""

    def scan(inputs: ScanInputs, problem: ScanProblem) -> ScanOutput:
        u, delta, A, B, C, h = pointwise.operands(inputs, problem)
        decay = torch.exp(torch.einsum("bgcl,gcn->bgcln", delta, A)).movedim(3, 0)
        drive = ((delta * u)[..., None] * B.mT).movedim(3, 0)
        states = recurrence.solved(decay, drive, h, solve)
        y = torch.einsum("lbgcn,bgcnl->bgcl", states, C)
        return pointwise.epilogue(y, states[-1].clone(), inputs)

    def make(problem: ScanProblem, config: Config) -> ScanFn:
        cpp_torch.LIBRARY.load()
        return pinned(directions.directed(lambda inputs: scan(inputs, problem), problem), int(config["threads"]))

    sources = (Path(__file__), *cpp_torch.backend.sources)
    return Backend(name, "two phases, not rearranged", 1, sources, Space((threads_tunable(),)), WHOLE_CONTRACT, make)


def in_parallel(name: str, backend: Backend) -> Backend:
    """Return `backend` with each direction in a thread of its own, in which torch uses one thread."""

    def make(problem: ScanProblem, config: Config) -> ScanFn:
        forward, reverse = (
            backend.build(problem.replace(direction=way), {"threads": 1}) for way in ("forward", "reverse")
        )
        # Whether gradients are wanted is a setting of each thread.
        pool = ThreadPoolExecutor(1, initializer=torch.set_grad_enabled, initargs=(False,))

        def both(*inputs: ScanInputs) -> ScanOutput:
            other = pool.submit(reverse, inputs[1])
            one, two = forward(inputs[0]), other.result()
            return ScanOutput(one.out + two.out, torch.stack((one.last_state, two.last_state)))

        return both

    capabilities = dataclasses.replace(backend.capabilities, directions=("bidirectional",), gradients=False)
    sources = (Path(__file__), *backend.sources)
    return dataclasses.replace(backend, name=name, sources=sources, space=Space(), capabilities=capabilities, make=make)


IN_PYTHON = two_phases("study_python", recurrence.sequential)
IN_CPP = two_phases("study_cpp", cpp_torch.solve)
CLAIMS = {
    IN_PYTHON: 2.2,
    in_parallel("study_python_parallel", IN_PYTHON): math.nan,
    IN_CPP: 2.8,
    in_parallel("study_cpp_parallel", IN_CPP): 3.5,
    in_parallel("study_rearranged", cpp_torch.backend): 4.0,
}
