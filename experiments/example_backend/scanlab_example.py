"""A backend of one's own: the recurrence written out, one time step after the other, for the plainest problems.

Install it beside scanlab (`pip install --no-deps experiments/example_backend`); `scanlab list` then names it,
`scanlab verify example` verifies it and `scanlab tune` times it beside the others. It claims little:
float32, forward in time, no gradients. What it does not claim, scanlab rejects for it, with the reason.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from scanlab.contract.backend import Backend, Capabilities, ScanFn
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config, Space


def make(problem: ScanProblem, config: Config) -> ScanFn:
    """Return the scan for one problem; preparation in this function is not timed."""

    def scan(inputs: ScanInputs) -> ScanOutput:
        u, delta, A, B, C, D, z, bias, _ = inputs
        B, C = (values if values.dim() == 3 else values[:, 0] for values in (B, C))  # one group may have its axis
        delta = delta if bias is None else delta + bias[:, None]
        delta = F.softplus(delta) if problem.delta_softplus else delta
        h, y = u.new_zeros(problem.batch, problem.dim, problem.state), torch.empty_like(u)
        for t in range(problem.length):
            drive = (delta[..., t] * u[..., t])[..., None] * B[:, None, :, t]
            h = torch.exp(delta[..., t, None] * A) * h + drive
            y[..., t] = (h * C[:, None, :, t]).sum(-1)
        y = y if D is None else y + D[:, None] * u
        return ScanOutput(y if z is None else y * F.silu(z), h)

    return pinned(scan, int(config["threads"]))


backend = Backend(
    name="example",
    summary="the recurrence written out, for a start of your own",
    rank=100,
    sources=(Path(__file__),),
    space=Space((threads_tunable(),)),
    capabilities=Capabilities(),
    make=make,
)
