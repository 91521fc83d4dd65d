"""Contract of `triton`, at sizes for its interpreter."""

from scanlab.contract.problem import ScanProblem
from scanlab.testing import BackendContract
from scanlab_kernels.selective_scan.op import op
from scanlab_kernels.selective_scan.triton import backend as triton


class TestContract(BackendContract):
    backend = triton.backend
    corners = tuple(
        dict.fromkeys(
            corner.replace(batch=1, dim=min(corner.dim, 36), length=min(corner.length, 5)) for corner in op.corners
        )
    )

    def plain(self) -> ScanProblem:
        return super().plain().replace(batch=1, dim=4, length=4)
