"""Launches the Triton kernels of ``kernels/triton``."""
