"""The operator in plain PyTorch: what runs on a CPU, and the form to read first.

``reference_grid`` says where output pixels lie. The sampler is PyTorch's own, ``bags`` for many channels
in channels_last, or ``reference_taps`` for a padding that PyTorch does not have. Matrices that warp an image
are stacked along its rows, so that no image is copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stn_triton import bags, reference_taps
from stn_triton.contract import coordinate_dtype, memory_format, sum_dtype
from stn_triton.options import DEFAULT, PAIR_PADDINGS, Options
from stn_triton.reference_grid import (
    ALL,
    Grid,
    Part,
    grad_theta_of,
    grids_of,
    row_derivatives,
    stacked,
    taken,
)

# Antialiasing takes at most so many samples per output pixel and axis; a shrink of up to 1/64 more than a
# whole number does not ask for another. As in kernels/coordinates.py.
MAX_SAMPLES = 64
SHRINK_TOLERANCE = 1 - 2.0**-6

# Of images or their results that are sampled together. In the cache of a core would be room for 2**17, but
# after each piece all threads wait for the last, which on a busy machine costs more than the cache gains.
_ELEMENTS_AT_ONCE = 2**22
# From how many channels and elements of one output on ``bags`` is faster than PyTorch's sampler.
_CHANNELS_OF_BAGS = 32
_ELEMENTS_OF_BAGS = 2**17
_SAMPLED_DTYPES = (torch.float32, torch.float64)
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
    parts = parts_of(input, theta, image_index, size, options)
    values = sum_dtype(input.dtype)
    is_whole = len(parts) == 1 and parts[0].matrices is ALL
    output = None
    if not is_whole:
        shape = (theta.shape[0], input.shape[1], *size)
        output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=form)
    for part in parts:
        images = taken(input, part.images, values)
        total = None
        for grid in grids_of(theta, part, size, options, dtype):
            sampled = _sampled(images, grid, part, options)
            if fill is not None:
                rest = _uncovered(images, grid, part, options)
                fills = fill.to(values).view(-1, *[1] * len(size))
                sampled += torch.where(rest != 0, rest * fills, 0)
            total = sampled if total is None else total.add_(sampled)
        if math.prod(part.samples) > 1:
            total /= math.prod(part.samples)
        if input.dtype == torch.uint8:
            total = total.nan_to_num_(0).round_().clamp_(0, 255)
        if is_whole:
            output = _converted(total, input.dtype, form)
        elif isinstance(part.matrices, slice):
            output[part.matrices] = total
        else:
            output[part.matrices] = total.to(input.dtype)
    # The result of an operator must not be a view, or nobody could change it in place.
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
    """Gradients of ``forward`` for input, theta and fill; None for one that ``output_mask`` leaves out."""
    dtype = coordinate_dtype(input.dtype)
    size = grad_output.shape[2:]
    form = memory_format(input, input.shape[2:])
    parts = parts_of(input, theta, image_index, size, options, is_backward=True)
    is_whole = len(parts) == 1 and parts[0].matrices is ALL
    has_ranges = bool(parts) and isinstance(parts[0].matrices, slice)
    totals = [None, None, None]
    if output_mask[0] and has_ranges and not is_whole:
        totals[0] = torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=form)
    elif output_mask[0] and not is_whole:  # images may be those of several parts
        totals[0] = input.new_zeros(input.shape, dtype=dtype)
    if output_mask[1] and not is_whole:
        totals[1] = theta.new_zeros(theta.shape, dtype=dtype)
    if output_mask[2] and not is_whole:
        totals[2] = fill.new_zeros(fill.shape, dtype=dtype)
    for part in parts:
        images = taken(input, part.images, dtype)
        part_grad = taken(grad_output, part.matrices, dtype)
        grads = _gradients(part_grad, images, theta, fill, part, options, output_mask)
        if is_whole:
            totals = grads
            break
        if output_mask[0] and has_ranges:
            totals[0][part.images] = grads[0]
        elif output_mask[0]:
            totals[0][part.images] += grads[0]
        if output_mask[1]:
            totals[1][part.matrices] = grads[1]
        if output_mask[2]:
            totals[2] += grads[2]
    grad_input, grad_theta, grad_fill = totals
    return _like(grad_input, input, form), _like(grad_theta, theta), _like(grad_fill, fill)


def _gradients(
    grad_output: Tensor,
    images: Tensor,
    theta: Tensor,
    fill: Tensor | None,
    part: Part,
    options: Options,
    output_mask: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of a part, in the dtype of coordinates."""
    dtype, size = images.dtype, grad_output.shape[2:]
    sampler = _SAMPLER_BACKWARD[len(size)]
    codes = _codes(options)
    if math.prod(part.samples) > 1:
        grad_output = grad_output / math.prod(part.samples)
    # A tap that moves outside is replaced by the fill value: derivatives are of the difference.
    content = images
    if fill is not None and output_mask[1]:
        content = images - fill.to(dtype).view(-1, *[1] * len(size))
    totals = [None, None, None]
    for grid in grids_of(theta, part, size, options, dtype):
        grads = [None, None, None]
        seen_grad = grad_output if grid.unseen is None else grad_output.masked_fill(grid.unseen, 0)
        if output_mask[0] or output_mask[1]:
            positions = stacked(grid.positions, part.count, 1)
            stacked_grad = stacked(seen_grad, part.count, 2)
            if codes is None:
                places = (content, positions, stacked(grid.lost, part.count, 1))
                grads[0], grad_grid = reference_taps.gradients(stacked_grad, *places, options, output_mask[0])
            else:
                mask = (output_mask[0], True)  # PyTorch computes the second in any case
                grads[0], grad_grid = sampler(stacked_grad, content, positions, *codes, mask)
            if output_mask[1]:
                rows = row_derivatives(grad_grid.view(grid.positions.shape), grid)
                grads[1] = grad_theta_of(rows, grid)
        if output_mask[2]:
            rest = _uncovered(images, grid, part, options)
            grads[2] = (torch.where(rest != 0, grad_output, 0) * rest).transpose(0, 1).flatten(1).sum(1)
        totals = list(map(_total, totals, grads))
    return [t if is_wanted else None for t, is_wanted in zip(totals, output_mask, strict=True)]


def _total(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more
    return total.add_(more)


def samples_per_pixel(
    theta: Tensor, size_in: Sequence[int], size: Sequence[int], align_corners: bool
) -> Tensor:
    """Into how many samples antialiasing splits an output pixel: (M, D), x first.

    Along each output axis, the length in input pixels of a step of one output pixel, rounded up.
    """
    extents = [theta.new_tensor([n - align_corners for n in reversed(s)]) for s in (size_in, size)]
    dim = len(size)
    steps = theta[:, :dim, :dim] * extents[0][:, None] / extents[1].clamp(min=1)
    steps = torch.where(extents[1] > 0, steps, 0)
    counts = torch.ceil(steps.square().sum(1).sqrt() * SHRINK_TOLERANCE).clamp(1, MAX_SAMPLES)
    return torch.where(steps.isfinite().all(1), counts, 1).long()


def _like(grad: Tensor | None, tensor: Tensor | None, form=torch.contiguous_format) -> Tensor | None:
    return None if grad is None else _converted(grad, tensor.dtype, form)


def _converted(tensor: Tensor, dtype: torch.dtype, form: torch.memory_format) -> Tensor:
    """In one pass; ``Tensor.to`` alone would keep other strides of a tensor that has the dtype."""
    if tensor.dtype == dtype:
        return tensor.contiguous(memory_format=form)
    return tensor.to(dtype, memory_format=form)


def parts_of(
    input: Tensor,
    theta: Tensor,
    image_index: Tensor | None,
    size: Sequence[int],
    options: Options,
    is_backward: bool = False,
) -> list[Part]:
    """All matrices at once where they allow it; else image by image, so that no image is copied."""
    n, m, dim = input.shape[0], theta.shape[0], len(size)
    if image_index is not None and m > 0:
        least, most = (number.item() for number in image_index.aminmax())
        if least < 0 or most >= n:
            wrong = least if least < 0 else most
            raise ValueError(f"image_index must name images 0 to {n - 1} of input, got {wrong}")
    if m == 0 or n == 0:
        return []
    samples = None
    if options.antialias:
        dtype = coordinate_dtype(input.dtype)
        samples = samples_per_pixel(theta.to(dtype), input.shape[2:], size, options.align_corners)
    if image_index is None and (samples is None or (samples == samples[0]).all()):
        each = (1,) * dim if samples is None else tuple(samples[0].tolist())
        count = m // n
        step = _images_at_once(input, size, m, options, is_backward)
        if step >= n:
            return [Part(ALL, ALL, count, each)]
        firsts = range(0, n, step)
        return [Part(slice(i, i + step), slice(i * count, (i + step) * count), count, each) for i in firsts]
    owners = torch.arange(m) // (m // n) if image_index is None else image_index
    keys = owners[:, None] if samples is None else torch.cat((owners[:, None], samples), 1)
    groups: dict[tuple[int, ...], list[int]] = {}
    for matrix, key in enumerate(keys.tolist()):
        groups.setdefault(tuple(key), []).append(matrix)
    return [
        Part(slice(key[0], key[0] + 1), torch.tensor(matrices), len(matrices), key[1:] or (1,) * dim)
        for key, matrices in groups.items()
    ]


def _images_at_once(
    input: Tensor, size: Sequence[int], matrices: int, options: Options, is_backward: bool
) -> int:
    """How many images are sampled together.

    PyTorch's sampler knows one layout of results, and computes coordinates of half precision in half
    precision: what must therefore be copied before or after is not there twice as a whole.
    """
    images, pixels = input.shape[0], math.prod(size)
    share = max(input.numel(), matrices * pixels * input.shape[1]) / _ELEMENTS_AT_ONCE
    if share < 4:
        return images
    is_copied = input.dtype not in _SAMPLED_DTYPES
    if memory_format(input, size) != torch.contiguous_format:
        is_copied |= is_backward or not _suits_bags(input, input.dtype, pixels, options)
    if not is_copied:
        return images
    threads = torch.get_num_threads()  # each samples whole images
    return max(threads, int(images / share) // threads * threads)


def _sampled(images: Tensor, grid: Grid, part: Part, options: Options) -> Tensor:
    """(matrices, C, *size): the images at the grid, 0 where nothing is sampled."""
    positions = stacked(grid.positions, part.count, 1)
    pixels = positions.shape[1:-1].numel() // part.count
    codes = _codes(options) if images.is_floating_point() else None
    if codes is None:
        output = reference_taps.sampled(images, positions, stacked(grid.lost, part.count, 1), options)
    elif _suits_bags(images, images.dtype, pixels, options):
        output = bags.sampled(images, positions, options)
    else:
        output = _SAMPLER[images.ndim - 2](images, positions, *codes)
    if part.count > 1:
        output = output.unflatten(2, (part.count, -1)).transpose(1, 2).flatten(0, 1)
    return output if grid.unseen is None else output.masked_fill(grid.unseen, 0)


def _codes(options: Options) -> tuple[int, int, bool] | None:
    """The options of PyTorch's sampler; None if it does not have the padding."""
    padding = options.padding.sampler
    if padding is None:
        return None
    return _MODES[options.mode], PAIR_PADDINGS.index(padding), options.align_corners


def _suits_bags(images: Tensor, dtype: torch.dtype, pixels: int, options: Options) -> bool:
    """Whether the channels of a pixel lie together and an output, of so many pixels, is large enough."""
    return (
        images.shape[1] >= _CHANNELS_OF_BAGS
        and pixels * images.shape[1] >= _ELEMENTS_OF_BAGS
        and dtype == torch.float32
        and options.mode == "bilinear"
        and not options.padding.repeats
        and memory_format(images, images.shape[2:]) != torch.contiguous_format
    )


def _uncovered(images: Tensor, grid: Grid, part: Part, options: Options) -> Tensor:
    """(matrices, 1, *size): the weight of all taps that lie outside; 0 where that is rounding."""
    ones = images.new_ones(()).expand(len(images), 1, *images.shape[2:])
    rest = 1 - _sampled(ones, grid, part, options)
    if not rest.is_floating_point():
        return rest
    return torch.where(rest.abs() > 16 * torch.finfo(rest.dtype).eps, rest, 0)
