"""The contract of `associative`."""

from scanlab.kernels import associative
from scanlab.testing import BackendContract


class TestContract(BackendContract):
    backend = associative.backend
