"""The causal convolution in Triton; the kernels are imported when the first problem is built."""

from pathlib import Path

from scanlab_kernels.causal_conv1d.op import call
from scanlab_kernels.implementations import TRITON

FILES = ("gpu.py", *(f"triton/{name}.py" for name in ("backward", "forward", "ops", "tile")))
backend = TRITON.backend("causal_conv1d", call, Path(__file__).parent, *FILES)
