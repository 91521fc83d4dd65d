"""The contract of `native`."""

from scanlab.kernels import native
from scanlab.testing import BackendContract


class TestContract(BackendContract):
    backend = native.backend
