"""Contract of `triton`, at sizes for its interpreter."""

from collections.abc import Iterator
from typing import Any

from scanlab.contract.base import Problem
from scanlab.contract.problem import ScanProblem
from scanlab.contract.space import Config
from scanlab.testing import BackendContract
from scanlab_kernels.selective_scan.op import op
from scanlab_kernels.selective_scan.triton import backend as triton

CORNERS: Any = op.corners


def is_taken(corner: ScanProblem) -> bool:
    """Return whether a corner adds to the others: of those wider than a block, both directions at once do."""
    return corner.dim <= 32 or corner.gradients or corner.direction == "bidirectional"


class TestContract(BackendContract):
    backend = triton.backend
    corners = tuple(
        dict.fromkeys(
            corner.replace(batch=1, dim=min(corner.dim, 36), length=min(corner.length, 5))
            for corner in filter(is_taken, CORNERS)
        )
    )

    def plain(self) -> Problem:
        return super().plain().replace(batch=1, dim=4, length=4)

    def configs(self) -> Iterator[Config]:
        """Yield those that differ here: the interpreter has no registers, and long scans are in test_kernels.py."""
        return (each for each in super().configs() if not each["registers"] and each["segments"] < 64)
