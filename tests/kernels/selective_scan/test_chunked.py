"""The contract of `chunked`."""

from scanlab.testing import BackendContract
from scanlab_kernels.selective_scan import chunked


class TestContract(BackendContract):
    backend = chunked.backend
