"""Backends: numpy (reference), cpu (native kernels over numpy arrays), cuda (CuPy arrays)."""
