"""Write a backend in thirty lines, and compare it with the shipped ones.

    python examples/4_write_a_backend.py

The backend computes all decays and drives at once, and then walks through time. It is verified against float64
before it is timed; plant an error, and it gets no time. Ends with the ranking.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from scanlab.contract.backend import Backend, Capabilities, ScanFn
from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config, Space
from scanlab.testing import compare


def make(problem: ScanProblem, config: Config) -> ScanFn:
    """Return the scan for one problem; preparation in this function is not timed."""

    def scan(inputs: ScanInputs) -> ScanOutput:
        u, delta, A, B, C, D, z, bias, _ = inputs
        B, C = (values if values.dim() == 3 else values[:, 0] for values in (B, C))
        delta = delta if bias is None else delta + bias[:, None]
        delta = F.softplus(delta) if problem.delta_softplus else delta
        decay = torch.exp(torch.einsum("bdl,dn->lbdn", delta, A))
        drive = torch.einsum("bdl,bnl->lbdn", delta * u, B)
        h = u.new_zeros(problem.batch, problem.dim, problem.state)
        y = torch.empty_like(u)
        for t in range(problem.length):
            h = torch.addcmul(drive[t], decay[t], h)
            y[..., t] = torch.einsum("bdn,bn->bd", h, C[..., t])
        y = y if D is None else y + D[:, None] * u
        return ScanOutput(y if z is None else y * F.silu(z), h)

    return pinned(scan, int(config["threads"]))


mine = Backend(
    name="mine",
    summary="decays and drives at once, then the loop",
    rank=100,
    sources=(Path(__file__),),
    space=Space((threads_tunable(),)),
    capabilities=Capabilities(),
    make=make,
)


def main(seconds: float) -> None:
    """Compare the backend with three others, in interleaved rounds."""
    problem = ScanProblem(batch=1, dim=192, length=256)
    for each in compare([mine, "reference", "two_phase", "chunked"], problem, seconds):
        time = each.reason if each.median_ms is None else f"{each.median_ms:8.2f} ms"
        print(f"{each.label:<32} {time}{'  fastest' if each.is_fastest else ''}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a backend and compare it.")
    parser.add_argument("--seconds", type=float, default=5.0, help="time of measuring")
    main(parser.parse_args().seconds)
