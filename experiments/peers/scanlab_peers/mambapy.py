"""mambapy's parallel scan in PyTorch, with the other operations of its MambaBlock.selective_scan."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config
from scanlab_peers.peer import peer, without_groups


def make(problem: ScanProblem, config: Config) -> Callable[[ScanInputs], ScanOutput]:
    """Return the forward scan; all tensors are (batch, length, dim), as in mambapy."""
    from mambapy.pscan import pscan

    def scan(inputs: ScanInputs) -> ScanOutput:
        u, delta = inputs.u.mT, inputs.delta.mT
        B, C = without_groups(inputs.B).mT, without_groups(inputs.C).mT
        if inputs.delta_bias is not None:
            delta = delta + inputs.delta_bias
        if problem.delta_softplus:
            delta = F.softplus(delta)
        decay = torch.exp(delta.unsqueeze(-1) * inputs.A)
        drive = delta.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1)
        states = pscan(decay, drive)
        y = (states @ C.unsqueeze(-1)).squeeze(3)
        if inputs.D is not None:
            y = y + inputs.D * u
        if inputs.z is not None:
            y = y * F.silu(inputs.z.mT)
        return ScanOutput(y.mT, states[:, -1])

    return pinned(scan, int(config["threads"]))


backend = peer("mambapy", "mambapy: Blelloch's scan in PyTorch", 101, __file__, ("mambapy",), make, threads_tunable())
