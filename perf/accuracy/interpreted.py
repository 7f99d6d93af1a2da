"""The kernels on a machine without a GPU: Triton's interpreter, made to round as a GPU does, and faster.

Triton's interpreter carries out each operation of a kernel in numpy, in the kernel's dtypes. In three things
it does not compute what a GPU computes, and they are replaced here:

- it truncates fp32 to bf16, where a GPU rounds to nearest, ties to even;
- before Triton 3.9 its FMA rounds twice, where a GPU's rounds once. In fp64 the product of two fp32 numbers
  is exact;
- it sums several tensors at once one element after the other, in Python. numpy sums by halves, as a GPU does.

Two differences remain. A compiler may contract weighted sums into FMAs. And sums are split otherwise, because
blocks are larger here: an interpreted program costs milliseconds, a lane next to nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch

from stn_triton import buckets, policy, tuning

_PIXELS = 2**16  # of a block


@contextmanager
def rounding_as_gpus(sides: Sequence[int]) -> Iterator[None]:
    """Within, interpreted kernels round as on a GPU and take images of ``sides`` (H, W) in large blocks."""
    from triton.runtime.interpreter import InterpreterBuilder, ReduceOps

    rows, columns = (1 << (n - 1).bit_length() for n in sides)
    rows = min(rows, max(_PIXELS // columns, 1))

    def large_blocks(bucket: buckets.Bucket, run: tuning.Launch) -> tuning.Config:
        config = policy.default(bucket)
        return {**config, "BLOCK_C": 1, "STEPS_C": 1, "RUN_C": 1, "BLOCK_H": rows, "BLOCK_W": columns}

    with (
        mock.patch.object(InterpreterBuilder, "cast_impl", _cast(InterpreterBuilder.cast_impl)),
        mock.patch.object(InterpreterBuilder, "create_fma", _fma),
        # Sums are the only reductions of several tensors in the library's kernels.
        mock.patch.object(ReduceOps, "generic_reduce", lambda self, tensors: list(map(self.sum, tensors))),
        tuning.choosing(large_blocks),
    ):
        yield


def _cast(original):
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def cast_impl(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return original(self, src, dst_type)
        rounded = torch.from_numpy(np.ascontiguousarray(src.data)).to(torch.bfloat16)
        return TensorHandle(rounded.view(torch.uint16).numpy(), dst_type.scalar)

    return cast_impl


def _fma(self, x, y, z):
    from triton.runtime.interpreter import TensorHandle

    wide = np.float64 if z.data.dtype == np.float32 else z.data.dtype
    exact = x.data.astype(wide) * y.data.astype(wide) + z.data.astype(wide)
    return TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)
