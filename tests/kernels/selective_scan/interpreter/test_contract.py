"""Contract of `triton`, at sizes for its interpreter."""

from scanlab.contract.problem import ScanProblem
from scanlab.testing import BackendContract
from scanlab_kernels.selective_scan.triton import backend as triton


class TestContract(BackendContract):
    backend = triton.backend
    sizes = ((1, 1, 1, 1), (2, 5, 2, 7), (1, 2, 7, 1), (1, 33, 2, 16))

    def plain(self) -> ScanProblem:
        return super().plain().replace(batch=1, dim=4, length=4)
