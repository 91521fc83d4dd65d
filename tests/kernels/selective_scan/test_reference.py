"""The contract of `reference`."""

from scanlab.testing import BackendContract
from scanlab_kernels.selective_scan import reference


class TestContract(BackendContract):
    backend = reference.backend
