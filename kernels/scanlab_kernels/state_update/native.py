"""One decoding step of the scan in C++."""

from pathlib import Path

from scanlab_kernels.implementations import NATIVE
from scanlab_kernels.state_update.op import call

backend = NATIVE.backend("state_update", call, Path(__file__).parent, "native.py", "native.cpp", gradients=False)
