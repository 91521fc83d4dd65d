"""The contract of every backend of `cross_scan_2d`."""

from scanlab.testing import OpContract
from scanlab_kernels.cross_scan_2d import composed, native
from scanlab_kernels.cross_scan_2d import torch as by_torch


class TestTorch(OpContract):
    backend = by_torch.backend


class TestComposed(OpContract):
    backend = composed.backend


class TestNative(OpContract):
    backend = native.backend
