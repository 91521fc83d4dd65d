"""The contract of every backend of `causal_conv1d`."""

from scanlab.testing import OpContract
from scanlab_kernels.causal_conv1d import native
from scanlab_kernels.causal_conv1d import torch as by_torch


class TestTorch(OpContract):
    backend = by_torch.backend


class TestNative(OpContract):
    backend = native.backend
