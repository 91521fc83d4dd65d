"""The contract of every backend of `state_update`."""

from scanlab.testing import OpContract
from scanlab_kernels.state_update import native
from scanlab_kernels.state_update import torch as by_torch


class TestTorch(OpContract):
    backend = by_torch.backend


class TestNative(OpContract):
    backend = native.backend
