"""The contract of `two_phase`."""

from scanlab.testing import BackendContract
from scanlab_kernels.selective_scan import two_phase


class TestContract(BackendContract):
    backend = two_phase.backend
