"""Residual add with normalisation in Triton; the kernels are imported when the first problem is built."""

from pathlib import Path

from scanlab_kernels.add_norm.op import call
from scanlab_kernels.implementations import TRITON

backend = TRITON.backend("add_norm", call, Path(__file__).parent, "gpu.py", "triton.py")
