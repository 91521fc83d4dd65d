"""Common parts of the C++ ops: vectors, threads, allocation, instruction sets."""
