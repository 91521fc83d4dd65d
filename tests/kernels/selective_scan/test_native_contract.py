"""The contract of `native`."""

from scanlab.testing import BackendContract
from scanlab_kernels.selective_scan.native import backend as native


class TestContract(BackendContract):
    backend = native.backend
