"""Kernels compiled without a GPU, and their machine code."""
