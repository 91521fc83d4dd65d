"""The contract of every backend of `linear`."""

from scanlab.testing import OpContract
from scanlab_kernels.linear import mkl, native, onednn
from scanlab_kernels.linear import torch as by_torch


class TestTorch(OpContract):
    backend = by_torch.backend


class TestOneDNN(OpContract):
    backend = onednn.backend


class TestMKL(OpContract):
    backend = mkl.backend


class TestGemv(OpContract):
    backend = native.gemv


class TestNative(OpContract):
    backend = native.backend
