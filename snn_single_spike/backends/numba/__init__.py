"""Launches the compiled CPU loops of ``kernels/numba``."""
