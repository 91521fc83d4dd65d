"""The recurrence as nested loops that Numba compiles: channels in parallel, everything fused, nothing stored."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from scanlab.contract.cpu import threads_tunable
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config
from scanlab_peers.peer import peer, without_groups


@functools.cache
def compiled() -> Callable[..., None]:
    """Return the loops, compiled at the first call for each layout."""
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def loops(u, delta, A, B, C, D, z, bias, softplus, gated, out, last):  # type: ignore[no-untyped-def]
        batch, dim, length = u.shape
        state = A.shape[1]
        for channel in numba.prange(batch * dim):
            b, d = channel // dim, channel % dim
            h = last[b, d]
            for t in range(length):
                size = delta[b, d, t] + bias[d]
                if softplus and size <= 20.0:
                    size = math.log1p(math.exp(size))
                drive, y = size * u[b, d, t], D[d] * u[b, d, t]
                for n in range(state):
                    h[n] = math.exp(size * A[d, n]) * h[n] + drive * B[b, t, n]
                    y += h[n] * C[b, t, n]
                if gated:
                    y *= z[b, d, t] / (1.0 + math.exp(-z[b, d, t]))
                out[b, d, t] = y

    loop: Callable[..., None] = loops
    return loop


def make(problem: ScanProblem, config: Config) -> Callable[[ScanInputs], ScanOutput]:
    """Return the forward scan."""
    import numba

    loops, threads = compiled(), min(int(config["threads"]), numba.config.NUMBA_NUM_THREADS)
    nothing = torch.zeros(problem.dim)

    def scan(inputs: ScanInputs) -> ScanOutput:
        numba.set_num_threads(threads)
        out, last = torch.empty_like(inputs.u), torch.zeros(problem.batch, problem.dim, problem.state)
        B, C = (without_groups(values).mT.contiguous() for values in (inputs.B, inputs.C))
        D = nothing if inputs.D is None else inputs.D
        z = inputs.u if inputs.z is None else inputs.z
        bias = nothing if inputs.delta_bias is None else inputs.delta_bias
        tensors: list[Any] = [each.numpy() for each in (inputs.u, inputs.delta, inputs.A, B, C, D, z, bias)]
        loops(*tensors, problem.delta_softplus, inputs.z is not None, out.numpy(), last.numpy())
        return ScanOutput(out, last)

    return scan


backend = peer("numba", "Numba: nested loops, compiled", 103, __file__, ("numba",), make, threads_tunable())
