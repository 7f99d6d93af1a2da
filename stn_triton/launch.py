"""From tensors to kernel launches: layouts, strides, index width, grid and device.

Nothing here waits for the GPU. Inputs are read through their strides, never copied. CPU tensors run in
Triton's interpreter (``TRITON_INTERPRET=1``), which is how the kernels are tested without a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from stn_triton import tuning
from stn_triton.kernels.backward import backward_kernel, theta_kernel
from stn_triton.kernels.forward import forward_kernel
from stn_triton.reference import coordinate_dtype, memory_format

_TRITON_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}

_MAX_PROGRAMS = 2**31 - 1


def forward(input: Tensor, theta: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Sample (N, C, H_in, W_in) at theta (N, 2, 3): (N, C, H_out, W_out), in the input's memory format."""
    n, c = input.shape[:2]
    output = torch.empty(
        (n, c, *size),
        dtype=input.dtype,
        device=input.device,
        memory_format=torch.contiguous_format if tuple(size) == (1, 1) else memory_format(input),
    )
    if output.numel() == 0:
        return output
    arguments = (output, input, theta, c, *input.shape[2:], *size)
    strides = (*output.stride(), *input.stride(), *theta.stride())
    flags = _flags(input, (output, input), align_corners)
    _launch("forward", forward_kernel, output, (*arguments, *strides), flags)
    return output


def backward(
    grad_output: Tensor, input: Tensor, theta: Tensor, align_corners: bool, output_mask: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``forward`` for input and theta; None for one that ``output_mask`` does not ask for."""
    needs_input, needs_theta = output_mask
    if not (needs_input or needs_theta):
        return None, None
    n, c = input.shape[:2]
    grad_input = torch.empty_like(input, memory_format=memory_format(input)) if needs_input else None
    if grad_output.numel() == 0:
        return grad_input, theta.new_zeros(theta.shape) if needs_theta else None
    sizes = (c, *input.shape[2:], *grad_output.shape[2:])
    strides = (*grad_output.stride(), *input.stride(), *theta.stride())
    written = (grad_input,) if needs_input else ()
    flags = _flags(input, (grad_output, input, *written), align_corners)
    if needs_input:
        arguments = (grad_input, grad_output, input, theta, *sizes, *grad_input.stride(), *strides)
        name = "backward" if needs_theta else "backward_input"
        flags["NEEDS_THETA"] = needs_theta
        partial = _launch(name, backward_kernel, grad_input, arguments, flags, needs_theta)
    else:
        arguments = (grad_output, input, theta, *sizes, *strides)
        partial = _launch("theta", theta_kernel, grad_output, arguments, flags, needs_theta)
    grad_theta = None
    if needs_theta:
        # The order of torch.sum is fixed, and in fp64 it adds no error; there is little to add.
        grad_theta = partial.view(n, -1, 2, 3).sum(1, dtype=torch.float64).to(theta.dtype)
    return grad_input, grad_theta


def _flags(input: Tensor, tensors: Sequence[Tensor], align_corners: bool) -> dict[str, object]:
    """The constexprs that do not depend on block sizes."""
    return {
        "ALIGN_CORNERS": align_corners,
        "INDEX": tl.int64 if any(_plane_extent(t) >= 2**31 for t in tensors) else tl.int32,
        "DTYPE": _TRITON_DTYPES[coordinate_dtype(input.dtype)],
    }


def _plane_extent(tensor: Tensor) -> int:
    """Elements that an offset of a pixel spans, two pixels beyond the plane included."""
    return (tensor.shape[2] + 2) * tensor.stride(2) + (tensor.shape[3] + 2) * tensor.stride(3)


@functools.cache
def options(kernel: str, dtype: torch.dtype) -> dict[str, object]:
    """How to compile a kernel, by its name in a bucket, for an image's dtype.

    Weighted sums may contract (coordinates are fixed by explicit FMAs); Triton's own default is to change.
    ptxas left to itself sometimes aims at fewer registers than the gather needs and spills a few.
    """
    result: dict[str, object] = {"enable_fp_fusion": True}
    if kernel.startswith("backward") and dtype != torch.float64 and torch.version.hip is None:
        result["maxnreg"] = 128
    return result


def _launch(
    name: str,
    kernel: triton.JITFunction,
    tiled: Tensor,
    arguments: tuple[object, ...],
    flags: dict[str, object],
    needs_partial: bool = False,
) -> Tensor | None:
    """Run a kernel over tiles of ``tiled``; returns the (programs, 6) partial sums if there are any."""
    n, c, height, width = tiled.shape
    channels_last = all(t.stride(1) == 1 for t in arguments if isinstance(t, Tensor) and t.ndim == 4)
    bucket = tuning.bucket_of(name, channels_last, tiled.dtype, n, c, height * width)

    def run(config: tuning.Config) -> Tensor | None:
        extents = (c, config["BLOCK_C"]), (height, config["BLOCK_H"]), (width, config["BLOCK_W"])
        programs = n * math.prod(-(-size // block) for size, block in extents)
        if programs > _MAX_PROGRAMS:
            raise ValueError(f"too many tiles for one launch: {programs} over shape {tuple(tiled.shape)}")
        leading = ()
        if kernel is not forward_kernel:
            dtype = coordinate_dtype(tiled.dtype)
            leading = (tiled.new_empty(programs if needs_partial else 0, 6, dtype=dtype),)
        is_even = c % config["BLOCK_C"] == 0
        kernel[(programs,)](
            *leading, *arguments, **flags, **config, EVEN_C=is_even, **options(name, tiled.dtype)
        )
        return leading[0] if leading else None

    with torch.cuda.device(tiled.device) if tiled.is_cuda else contextlib.nullcontext():
        return run(tuning.configuration(bucket, tiled.device, run))
