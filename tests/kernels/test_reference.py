"""The contract of `reference`."""

from scanlab.kernels import reference
from scanlab.testing import BackendContract


class TestContract(BackendContract):
    backend = reference.backend
