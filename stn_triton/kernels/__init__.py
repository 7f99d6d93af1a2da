"""Triton kernels and the small jit helpers that they share; nothing here knows tensors or devices."""
