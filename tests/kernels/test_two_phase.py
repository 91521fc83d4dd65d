"""The contract of `two_phase`."""

from scanlab.kernels import two_phase
from scanlab.testing import BackendContract


class TestContract(BackendContract):
    backend = two_phase.backend
