"""The contract of `cpp_torch`."""

from scanlab.kernels import cpp_torch
from scanlab.testing import BackendContract


class TestContract(BackendContract):
    backend = cpp_torch.backend
