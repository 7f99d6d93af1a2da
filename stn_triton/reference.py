"""The operator in plain PyTorch: what runs on a CPU, and the form to read first.

The grid is built by broadcasting in the centred form of PyTorch's base grid, ``x = (2 ow - (W_out - 1)) / S``
with ``S = W_out`` or, for align_corners, ``W_out - 1``: one rounding where ``F.affine_grid`` has several, and
no batched matrix product. The sampler is PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Beyond this PyTorch's CPU sampler may meet coordinates that it converts to integers undefined.
_SAFE_THETA = 1e4
_BILINEAR, _ZEROS = 0, 0


def coordinate_dtype(input_dtype: torch.dtype) -> torch.dtype:
    """The dtype of coordinates, weights and sums: fp64 for fp64 images, fp32 for all others."""
    return torch.float64 if input_dtype == torch.float64 else torch.float32


def memory_format(input: Tensor) -> torch.memory_format:
    """channels_last if the channels of ``input`` lie closest together, else contiguous (NCHW).

    Judged by strides alone, so that slices of a channels_last tensor count as channels_last too. A tensor
    that is both (one channel, or one pixel) is contiguous.
    """
    _, channels, height, width = input.shape
    _, stride_c, stride_h, stride_w = input.stride()
    if channels < 2 or stride_c == 0 or (height < 2 and width < 2):
        return torch.contiguous_format
    inside_w = width < 2 or stride_c < stride_w
    inside_h = height < 2 or stride_c < stride_h
    return torch.channels_last if inside_w and inside_h else torch.contiguous_format


def forward(input: Tensor, theta: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Sample (N, C, H_in, W_in) at theta (N, 2, 3): (N, C, H_out, W_out), in the input's memory format."""
    dtype = coordinate_dtype(input.dtype)
    grid, outside = _grid(theta.to(dtype), *_base(size, align_corners, dtype, theta.device))
    output = F.grid_sample(input.to(dtype), grid, "bilinear", "zeros", align_corners)
    if outside is not None:
        output.masked_fill_(outside, 0)
    return output.to(input.dtype).contiguous(memory_format=memory_format(input))


def backward(
    grad_output: Tensor, input: Tensor, theta: Tensor, align_corners: bool, output_mask: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``forward`` for input and theta; None for one that ``output_mask`` does not ask for."""
    dtype = coordinate_dtype(input.dtype)
    by, bx = _base(grad_output.shape[2:], align_corners, dtype, theta.device)
    grid, outside = _grid(theta.to(dtype), by, bx)
    grad_output = grad_output.to(dtype)
    if outside is not None:
        grad_output = grad_output.masked_fill(outside, 0)
    grad_input, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
        grad_output, input.to(dtype), grid, _BILINEAR, _ZEROS, align_corners, (output_mask[0], True)
    )
    grad_theta = None
    if output_mask[1]:
        over_rows = grad_grid.sum(1)
        over_columns = grad_grid.sum(2)
        grad_theta = torch.stack(
            ((bx[:, None] * over_rows).sum(1), (by[:, None] * over_columns).sum(1), over_rows.sum(1)), dim=2
        ).to(theta.dtype)
    if output_mask[0]:
        grad_input = grad_input.to(input.dtype).contiguous(memory_format=memory_format(input))
    else:
        grad_input = None
    return grad_input, grad_theta


def _base(
    size: Sequence[int], align_corners: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The normalised positions of output rows and columns; 0 where there is a single one."""
    doubled = [torch.arange(1 - n, n, 2, dtype=dtype, device=device) for n in size]
    by, bx = (d / max(n - align_corners, 1) for d, n in zip(doubled, size, strict=True))
    return by, bx


def _grid(theta: Tensor, by: Tensor, bx: Tensor) -> tuple[Tensor, Tensor | None]:
    """Normalised coordinates (N, H_out, W_out, 2), all of them finite, and a mask of those that were not."""
    along_x = theta[:, :, 0, None] * bx
    along_y = theta[:, :, 1, None] * by + theta[:, :, 2, None]
    grid = theta.new_empty(theta.shape[0], len(by), len(bx), 2)
    for axis in (0, 1):
        torch.add(along_x[:, axis, None, :], along_y[:, axis, :, None], out=grid[..., axis])
    if (theta.abs() < _SAFE_THETA).all():
        return grid, None
    outside = ~grid.isfinite().all(-1)
    grid.clamp_(-_SAFE_THETA, _SAFE_THETA).nan_to_num_(nan=0.0)
    return grid, outside[:, None]
