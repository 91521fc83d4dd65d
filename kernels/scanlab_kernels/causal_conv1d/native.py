"""The causal convolution in C++."""

from pathlib import Path

from scanlab_kernels.causal_conv1d.op import call
from scanlab_kernels.implementations import NATIVE

backend = NATIVE.backend("causal_conv1d", call, Path(__file__).parent, "native.py", "native.cpp")
