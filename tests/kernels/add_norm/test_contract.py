"""The contract of every backend of `add_norm`."""

from scanlab.testing import OpContract
from scanlab_kernels.add_norm import native
from scanlab_kernels.add_norm import torch as by_torch


class TestTorch(OpContract):
    backend = by_torch.backend


class TestNative(OpContract):
    backend = native.backend
