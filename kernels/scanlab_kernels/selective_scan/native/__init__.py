"""Selective scan in C++; recurrence.h is the loop.

A call goes from the function that backend.py builds to the torch op in native.cpp, which checks the tensors and
allocates the outputs; to `run` in scan.cpp, which hands tiles of channels to threads; to the kernels of the instruction
set (kernels.cpp); to forward.h; and from there to recurrence.h.
"""
