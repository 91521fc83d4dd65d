"""Other people's code, running on these kernels: one module for each package that is patched."""
