"""Tests of the GPU kernels in Triton's interpreter; collected only in a process that has it switched on."""

from scanlab.kernels import triton_version

collect_ignore_glob = [] if triton_version.interpreted() else ["test_*.py"]
