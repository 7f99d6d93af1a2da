"""Test whether a device's fused multiply-adds round once; interpreters differ."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl


@triton.jit
def _fma_kernel(out_ptr, x_ptr):
    x = tl.load(x_ptr)
    tl.store(out_ptr, tl.fma(x, x, -x * x))


@functools.cache
def is_fused(device: torch.device) -> bool:
    """Whether fused multiply-adds round once: on GPUs and in newer interpreters."""
    x = torch.full((1,), 1 + 2**-12, device=device)
    out = torch.zeros_like(x)
    _fma_kernel[(1,)](out, x)
    return bool(out.item())
