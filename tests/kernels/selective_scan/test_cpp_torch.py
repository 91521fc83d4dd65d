"""The contract of `cpp_torch`."""

from scanlab.testing import BackendContract
from scanlab_kernels.selective_scan import cpp_torch


class TestContract(BackendContract):
    backend = cpp_torch.backend
