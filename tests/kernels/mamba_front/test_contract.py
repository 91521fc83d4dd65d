"""The contract of every backend of `mamba_front`."""

from scanlab.testing import OpContract
from scanlab_kernels.mamba_front import composed, native


class TestComposed(OpContract):
    backend = composed.backend


class TestNative(OpContract):
    backend = native.backend
