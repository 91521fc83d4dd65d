"""One decoding step of the scan in Triton; the kernels are imported when the first problem is built."""

from pathlib import Path

from scanlab_kernels.implementations import TRITON
from scanlab_kernels.state_update.op import call

backend = TRITON.backend("state_update", call, Path(__file__).parent, "gpu.py", "triton.py", gradients=False)
