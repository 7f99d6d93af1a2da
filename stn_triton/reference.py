"""The operator in plain PyTorch: it runs on CPUs and is the implementation to read first.

``reference_grid`` computes the positions that output pixels sample. The sampler is PyTorch's own, ``bags``
for many channels in channels_last, or ``reference_taps`` for a padding that PyTorch does not have. Grids of
the same image are stacked along its rows, so that no image is copied. Antialiasing samples a finer output
and averages; ``reference_parts`` divides it into parts that fit into memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stn_triton import bags, reference_parts, reference_taps
from stn_triton.contract import ROUNDING, coordinate_dtype, memory_format, sum_dtype
from stn_triton.options import DEFAULT, PAIR_PADDINGS, Options
from stn_triton.reference_grid import (
    Grid,
    grad_theta_of,
    grid_of,
    joined,
    joined_lost,
    joined_unseen,
    parted,
    pooled,
    row_derivatives,
    spread,
    taken,
)

_SAMPLER = {2: torch.grid_sampler_2d, 3: torch.grid_sampler_3d}
_SAMPLER_BACKWARD = {
    2: torch.ops.aten.grid_sampler_2d_backward.default,
    3: torch.ops.aten.grid_sampler_3d_backward.default,
}
_MODES = {"bilinear": 0, "nearest": 1, "bicubic": 2}


def forward(
    input: Tensor,
    theta: Tensor,
    fill: Tensor | None = None,
    image_index: Tensor | None = None,
    *,
    size: Sequence[int],
    options: Options = DEFAULT,
) -> Tensor:
    """Sample (N, C, ...) at theta (M, ...): (M, C, *size), in the input's memory format."""
    dtype = coordinate_dtype(input.dtype)
    form = memory_format(input, size)
    shares = reference_parts.shares_of(input, theta, image_index, size, options)
    is_whole = reference_parts.is_whole(shares)
    output = None
    if not is_whole:
        shape = (theta.shape[0], input.shape[1], *size)
        output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=form)
    for share in shares:
        images = taken(input, share.images, sum_dtype(input.dtype))
        for parts in share.batches:
            grids = [grid_of(theta, part, size, options, dtype) for part in parts]
            sampled = _filled(images, grids, fill, math.prod(size), options)
            for grid, fine in zip(grids, sampled, strict=True):
                total = pooled(fine, grid.part)
                if input.dtype == torch.uint8:
                    total = total.nan_to_num_(0).round_().clamp_(0, 255)
                if is_whole:
                    output = _converted(total, input.dtype, form)
                else:
                    output[grid.part.place] = total.to(input.dtype)
    # The result of an operator must not be a view: a view could not be changed in place.
    return output.clone() if output._is_view() else output


def backward(
    grad_output: Tensor,
    input: Tensor,
    theta: Tensor,
    fill: Tensor | None = None,
    image_index: Tensor | None = None,
    *,
    options: Options = DEFAULT,
    output_mask: Sequence[bool] = (True, True, False),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``forward`` for input, theta and fill; None where ``output_mask`` is False."""
    dtype = coordinate_dtype(input.dtype)
    size = grad_output.shape[2:]
    form = memory_format(input, input.shape[2:])
    shares = reference_parts.shares_of(input, theta, image_index, size, options, is_backward=True)
    totals = [None, None, None]
    is_whole = reference_parts.is_whole(shares)
    if not is_whole:
        if output_mask[0]:
            totals[0] = torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=form)
            if image_index is not None or not shares:  # some images may have no gradient
                totals[0].zero_()
        totals[1] = theta.new_zeros(theta.shape, dtype=dtype) if output_mask[1] else None
        totals[2] = fill.new_zeros(fill.shape, dtype=dtype) if output_mask[2] else None
    for share in shares:
        images = taken(input, share.images, dtype)
        # A tap outside has the fill value, so derivatives by positions are those of image minus fill value.
        content = images
        if fill is not None and output_mask[1]:
            content = images - fill.to(dtype).view(-1, *[1] * len(size))
        grad_images = None
        for parts in share.batches:
            grids = [grid_of(theta, part, size, options, dtype) for part in parts]
            grads = [taken(grad_output, part.place, dtype) for part in parts]
            more, grad_thetas, grad_fill = _gradients(grads, images, content, grids, options, output_mask)
            grad_images = more if grad_images is None else grad_images.add_(more)
            if is_whole:
                totals = [grad_images, grad_thetas and grad_thetas[0], grad_fill]
                break
            if output_mask[1]:
                for part, grad_theta in zip(parts, grad_thetas, strict=True):
                    totals[1][part.matrices] += grad_theta
            if output_mask[2]:
                totals[2] += grad_fill
        if output_mask[0] and not is_whole:
            totals[0][share.images] = grad_images
    grad_input, grad_theta, grad_fill = totals
    return _like(grad_input, input, form), _like(grad_theta, theta), _like(grad_fill, fill)


def _gradients(
    grads: Sequence[Tensor],
    images: Tensor,
    content: Tensor,
    grids: Sequence[Grid],
    options: Options,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor] | None, Tensor | None]:
    """Gradients for the images, for the theta of each grid and for the fill values.

    Results have the dtype of coordinates, and are None where ``output_mask`` is False.
    """
    grad_images = grad_thetas = grad_fill = None
    fine = spread(grads, grids)
    if output_mask[0] or output_mask[1]:
        positions = joined([grid.positions for grid in grids], grids, 1)
        unseen = joined_unseen(grids)
        seen = fine if unseen is None else fine.masked_fill(unseen, 0)
        codes = _codes(options)
        if codes is None:
            lost = joined_lost(grids)
            found = reference_taps.gradients(seen, content, positions, lost, options, output_mask[0])
        else:
            mask = (output_mask[0], True)  # PyTorch computes the second in any case
            found = _SAMPLER_BACKWARD[images.ndim - 2](seen, content, positions, *codes, mask)
        grad_images = found[0] if output_mask[0] else None
        if output_mask[1]:
            along = zip(parted(found[1], grids, 1), grids, strict=True)
            grad_thetas = [grad_theta_of(row_derivatives(grad, grid), grid) for grad, grid in along]
    if output_mask[2]:
        each = zip(parted(fine, grids, 2), _uncovered(images, grids, options), strict=True)
        sums = [(torch.where(rest != 0, g, 0) * rest).transpose(0, 1).flatten(1).sum(1) for g, rest in each]
        grad_fill = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
    return grad_images, grad_thetas, grad_fill


def _like(grad: Tensor | None, tensor: Tensor | None, form=torch.contiguous_format) -> Tensor | None:
    return None if grad is None else _converted(grad, tensor.dtype, form)


def _converted(tensor: Tensor, dtype: torch.dtype, form: torch.memory_format) -> Tensor:
    """Convert dtype and memory format in one pass. ``Tensor.to`` keeps strides if the dtype is the same."""
    if tensor.dtype == dtype:
        return tensor.contiguous(memory_format=form)
    return tensor.to(dtype, memory_format=form)


def _filled(
    images: Tensor, grids: Sequence[Grid], fill: Tensor | None, pixels: int, options: Options
) -> list[Tensor]:
    """The images at the positions of each grid, (matrices, C, ...), with fill values outside."""
    sampled = _sampled(images, grids, pixels, options)
    if fill is not None:
        fills = fill.to(images.dtype).view(-1, *[1] * (images.ndim - 2))
        for total, rest in zip(sampled, _uncovered(images, grids, options), strict=True):
            total += torch.where(rest != 0, rest * fills, 0)
    return sampled


def _sampled(images: Tensor, grids: Sequence[Grid], pixels: int, options: Options) -> list[Tensor]:
    """The images at the positions of each grid, (matrices, C, ...); 0 where nothing is sampled."""
    positions = joined([grid.positions for grid in grids], grids, 1)
    codes = _codes(options) if images.is_floating_point() else None
    if codes is None:
        output = reference_taps.sampled(images, positions, joined_lost(grids), options)
    elif bags.suits(images, images.dtype, pixels, options):
        output = bags.sampled(images, positions, options)
    else:
        output = _SAMPLER[images.ndim - 2](images, positions, *codes)
    each = zip(parted(output, grids, 2), grids, strict=True)
    return [out if grid.unseen is None else out.masked_fill(grid.unseen, 0) for out, grid in each]


def _codes(options: Options) -> tuple[int, int, bool] | None:
    """Arguments of PyTorch's sampler for the options; None if it does not have the padding."""
    padding = options.padding.sampler
    if padding is None:
        return None
    return _MODES[options.mode], PAIR_PADDINGS.index(padding), options.align_corners


def _uncovered(images: Tensor, grids: Sequence[Grid], options: Options) -> list[Tensor]:
    """Total weight of taps outside the images for each grid, (matrices, 1, ...); 0 if it is only rounding."""
    ones = images.new_ones(()).expand(len(images), 1, *images.shape[2:])
    rests = [1 - seen for seen in _sampled(ones, grids, 0, options)]
    if not images.is_floating_point():
        return rests
    return [torch.where(rest.abs() > ROUNDING * torch.finfo(rest.dtype).eps, rest, 0) for rest in rests]
