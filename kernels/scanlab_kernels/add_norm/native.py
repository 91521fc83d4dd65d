"""Residual add with normalisation in C++."""

from pathlib import Path

from scanlab_kernels.add_norm.op import call
from scanlab_kernels.implementations import NATIVE

backend = NATIVE.backend("add_norm", call, Path(__file__).parent, "native.py", "native.cpp")
