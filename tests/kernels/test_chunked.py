"""The contract of `chunked`."""

from scanlab.kernels import chunked
from scanlab.testing import BackendContract


class TestContract(BackendContract):
    backend = chunked.backend
