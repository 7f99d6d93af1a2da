"""The operator composed of PyTorch's, for the older ONNX exporter: ``torch.onnx.export(dynamo=False)``.

A grid is computed for ``F.grid_sample``, which becomes ``GridSample``: opset 16 or newer, for volumes 20.
Sizes may be tensors that a trace has recorded. ``stn_triton.onnx`` is for the newer exporter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stn_triton import splines, tracing
from stn_triton.contract import ROUNDING, coordinate_dtype
from stn_triton.options import PADDINGS, Options, Padding

FAR = 1e4
"""Normalised coordinates are clamped to this: runtimes convert them to integers, which fails for large ones.
Beyond this limit every position gives the same: the outside, or the border."""
WIDE = (torch.float64, torch.int32, torch.int64)
"""Dtypes of images that are sampled in fp64: fp32 cannot hold all values, runtimes sample no integers."""


def check_exportable(options: Options) -> Padding:
    """Return the padding, or raise NotImplementedError if ONNX cannot express the options."""
    if options.antialias:
        raise NotImplementedError("antialias must be False for ONNX export, got True")
    padding = options.padding
    if padding.sampler is None:
        names = [name for name, padding in PADDINGS.items() if padding.sampler is not None]
        raise NotImplementedError(
            f"padding_mode must be one of {names} for ONNX export, got {options.padding_mode!r}"
        )
    return padding


def sample(
    input: Tensor,
    theta: Tensor,
    fill: Tensor | None,
    image_index: Tensor | None,
    size: Sequence[int | Tensor],
    options: Options,
) -> Tensor:
    """Sample as ``ops.affine_grid_sample`` does."""
    padding = check_exportable(options)
    dtype = torch.float64 if input.dtype in WIDE else coordinate_dtype(input.dtype)
    images = input.to(dtype)
    if image_index is not None:
        images = images[image_index]
    grid, is_seen = _grid(theta, size, dtype, options)
    if not padding.repeats:
        grid = grid.clamp(-FAR, FAR)
    is_one_each = tracing.shape_of(images)[0] == tracing.shape_of(theta)[0]
    if not is_one_each:
        # The grids of an image are stacked along its rows, so that it is not copied.
        grid = grid.reshape(images.shape[0], -1, *grid.shape[2:])

    def sampled(images: Tensor) -> Tensor:
        output = F.grid_sample(images, grid, options.mode, padding.sampler, options.align_corners)
        if not is_one_each:
            output = output.unflatten(2, (-1, size[0])).transpose(1, 2).flatten(0, 1)
        return output if is_seen is None else output.where(is_seen, 0.0)

    output = sampled(images)
    if fill is not None:
        rest = 1 - sampled(torch.ones_like(images[:, :1]))
        fills = fill.to(dtype).view(-1, *[1] * len(size))
        is_none = rest.abs() <= ROUNDING * torch.finfo(dtype).eps
        output = output + (rest * fills).masked_fill(is_none, 0)
    if input.dtype == torch.uint8:
        output = output.round().clamp(0, 255)
    return output.to(input.dtype)


def _grid(
    theta: Tensor, size: Sequence[int | Tensor], dtype: torch.dtype, options: Options
) -> tuple[Tensor, Tensor | None]:
    """Normalised positions (M, *size, D), and for a projective map where it samples, (M, 1, *size)."""
    dim = len(size)
    axes = [_axis(n, options.align_corners, theta.device, dtype) for n in reversed(size)]
    if options.points:
        theta = splines.coefficients(theta, options.points, dtype)
    columns = [column[(..., *[None] * dim)] for column in theta.to(dtype).unbind(2)]
    grid = columns[dim]
    for axis, at in enumerate(axes):
        grid = grid + columns[axis] * at.view(-1, *[1] * axis)
    if options.points:
        basis = splines.basis(axes, options.points).unbind(-1)
        grid = grid + sum(column * term for column, term in zip(columns[dim + 1 :], basis, strict=True))
    if options.points or tracing.shape_of(theta)[1] == dim:
        return grid.movedim(1, -1), None
    divisor = grid[:, dim:]
    is_seen = divisor > 0
    positions = grid[:, :dim] / divisor.masked_fill(~is_seen, 1)
    return positions.movedim(1, -1), is_seen


def _axis(n: int | Tensor, align_corners: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Normalised positions of the pixels of an axis, exact before the division."""
    doubled = 2 * torch.arange(n, device=device) - (n - 1)
    return doubled.to(dtype) / tracing.at_least(1, n - int(align_corners))
