"""The contract of `associative`."""

from scanlab.testing import BackendContract
from scanlab_kernels.selective_scan import associative


class TestContract(BackendContract):
    backend = associative.backend
