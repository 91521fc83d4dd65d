"""Contract of `triton`, at sizes for its interpreter."""

from typing import Any

from scanlab.contract.base import Problem
from scanlab.testing import BackendContract
from scanlab_kernels.selective_scan.op import op
from scanlab_kernels.selective_scan.triton import backend as triton

CORNERS: Any = op.corners


class TestContract(BackendContract):
    backend = triton.backend
    corners = tuple(
        dict.fromkeys(
            corner.replace(batch=1, dim=min(corner.dim, 36), length=min(corner.length, 5)) for corner in CORNERS
        )
    )

    def plain(self) -> Problem:
        return super().plain().replace(batch=1, dim=4, length=4)
