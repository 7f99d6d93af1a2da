"""The operator in plain PyTorch: what runs on a CPU, and the form to read first.

The grid is built by broadcasting in the centred form of PyTorch's base grid, ``x = (2 ow - (W_out - 1)) / S``
with ``S = W_out`` or, for align_corners, ``W_out - 1``: one rounding where ``F.affine_grid`` has several, and
no batched matrix product. The sampler is PyTorch's own. Matrices that warp the same image are stacked along
its rows, so that no image is copied.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stn_triton import splines
from stn_triton.options import DEFAULT, Options

# Antialiasing takes at most so many samples per output pixel and axis; a shrink of up to 1/64 more than a
# whole number does not ask for another. As in kernels/coordinates.py.
MAX_SAMPLES = 64
SHRINK_TOLERANCE = 1 - 2.0**-6

# Beyond this PyTorch's CPU sampler may meet coordinates that it converts to integers undefined.
_SAFE_THETA = 1e4
# Positions on longer axes are made anew by each call.
_LONGEST_KEPT = 4096
# Pixels of an output so small that the number of operations decides how long it takes.
_MOST_WHOLE = 256
# Images and, alike, their results that no cache near a core has room for.
_LARGE_BYTES = 2**21
_SAMPLED_DTYPES = (torch.float32, torch.float64)
_MODES = {"bilinear": 0, "nearest": 1, "bicubic": 2}
_PADDINGS = {"zeros": 0, "border": 1, "reflection": 2, "fill": 0}


def coordinate_dtype(input_dtype: torch.dtype) -> torch.dtype:
    """The dtype of coordinates, weights and sums: fp64 for fp64 images, fp32 for all others."""
    return torch.float64 if input_dtype == torch.float64 else torch.float32


def memory_format(input: Tensor, size: Sequence[int]) -> torch.memory_format:
    """Of a tensor like ``input`` of a spatial size: channels_last if its channels lie closest together.

    Judged by strides alone, so that slices of a channels_last tensor count as channels_last too. What is both
    (one channel, or one pixel) is contiguous.
    """
    _, channels, *sizes = input.shape
    _, stride_c, *strides = input.stride()
    if channels < 2 or stride_c == 0 or math.prod(size) == 1:
        return torch.contiguous_format
    others = [stride for n, stride in zip(sizes, strides, strict=True) if n > 1]
    if not others or any(stride <= stride_c for stride in others):
        return torch.contiguous_format
    return torch.channels_last if len(sizes) == 2 else torch.channels_last_3d


ALL = slice(None)


class Part(NamedTuple):
    """Matrices that can be sampled at once: as many for each image, as many samples for each pixel."""

    images: slice
    matrices: slice | Tensor
    """A range, or (images * count,) indices; those of an image after each other. ALL of both, or of none."""
    count: int
    """Matrices per image."""
    samples: tuple[int, ...]
    """Per output pixel and axis, x first."""


class Base(NamedTuple):
    """Normalised output positions, of one sample of each pixel."""

    axes: tuple[Tensor, ...]
    """Those on each axis, x first."""
    whole: Tensor | None
    """(D + 1, *size): those of every pixel, then ones. None of a large output."""
    last: Tensor | None
    """The same as (*size, 1, D + 1)."""


class Grid(NamedTuple):
    """Where one sample of each output pixel lies, for all matrices of a part."""

    base: Base
    positions: Tensor
    """(matrices, *size, D), normalised, all finite."""
    divisor: Tensor | None
    """(matrices, *size, 1), of a projective map."""
    unseen: Tensor | None
    """(matrices, 1, *size), where nothing is sampled."""
    bases: Tensor | None
    """(H, W, P), of a spline: what its weights are multiplied with."""


def forward(
    input: Tensor,
    theta: Tensor,
    size: Sequence[int],
    options: Options = DEFAULT,
    fill: Tensor | None = None,
    image_index: Tensor | None = None,
) -> Tensor:
    """Sample (N, C, ...) at theta (M, ...): (M, C, *size), in the input's memory format."""
    dtype = coordinate_dtype(input.dtype)
    form = memory_format(input, size)
    parts = parts_of(input, theta, size, options, image_index)
    is_whole = len(parts) == 1 and parts[0].matrices is ALL
    output = None
    if not is_whole:
        shape = (theta.shape[0], input.shape[1], *size)
        output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=form)
    for part in parts:
        images = taken(input, part.images, dtype)
        total = None
        for grid in grids_of(theta, part, size, options, dtype):
            sampled = _sampled(images, grid, part, options)
            if fill is not None:
                rest = _uncovered(images, grid, part, options)
                fills = fill.to(dtype).view(-1, *[1] * len(size))
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
    options: Options = DEFAULT,
    output_mask: Sequence[bool] = (True, True, False),
    fill: Tensor | None = None,
    image_index: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``forward`` for input, theta and fill; None for one that ``output_mask`` leaves out."""
    dtype = coordinate_dtype(input.dtype)
    size = grad_output.shape[2:]
    form = memory_format(input, input.shape[2:])
    parts = parts_of(input, theta, size, options, image_index)
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
        grads = _gradients(part_grad, images, theta, part, options, output_mask, fill)
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
    part: Part,
    options: Options,
    output_mask: Sequence[bool],
    fill: Tensor | None,
) -> list[Tensor | None]:
    """The gradients of a part, in the dtype of coordinates."""
    dtype, size = images.dtype, grad_output.shape[2:]
    aten = torch.ops.aten
    sampler = (aten.grid_sampler_2d_backward if len(size) == 2 else aten.grid_sampler_3d_backward).default
    codes = (_MODES[options.mode], _PADDINGS[options.padding_mode], options.align_corners)
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
            mask = (output_mask[0], True)  # PyTorch computes the second in any case
            grads[0], grad_grid = sampler(
                stacked(seen_grad, part.count, 2), content, positions, *codes, mask
            )
            if output_mask[1]:
                rows = row_derivatives(grad_grid.view(grid.positions.shape), grid)
                grads[1] = grad_theta_of(rows, grid)
        if output_mask[2]:
            rest = _uncovered(images, grid, part, options)
            grads[2] = (torch.where(rest != 0, grad_output, 0) * rest).transpose(0, 1).flatten(1).sum(1)
        totals = [g if t is None else t if g is None else t.add_(g) for t, g in zip(totals, grads, strict=True)]
    return [t if is_wanted else None for t, is_wanted in zip(totals, output_mask, strict=True)]


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
    input: Tensor, theta: Tensor, size: Sequence[int], options: Options, image_index: Tensor | None
) -> list[Part]:
    """All matrices at once where they allow it; else image by image, so that no image is copied."""
    n, m, dim = len(input), len(theta), len(size)
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
        count, step = m // n, _images_at_once(input, size)
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


def _images_at_once(input: Tensor, size: Sequence[int]) -> int:
    """How many images are sampled together.

    PyTorch's sampler gives each thread whole images and knows one layout of its results, and no half
    precision as it is meant here: what is to be copied before or after should not have left the cache.
    """
    is_copied = memory_format(input, size) != torch.contiguous_format or input.dtype not in _SAMPLED_DTYPES
    if not is_copied or input.numel() * input.element_size() < _LARGE_BYTES:
        return len(input)
    return torch.get_num_threads()


def taken(tensor: Tensor, which: slice | Tensor, dtype: torch.dtype) -> Tensor:
    """Some entries in a dtype; what need not be done is skipped here, for it takes PyTorch a microsecond."""
    if which is not ALL:
        tensor = tensor[which]
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def grids_of(
    theta: Tensor, part: Part, size: Sequence[int], options: Options, dtype: torch.dtype
) -> Iterator[Grid]:
    """The grid of each sample of a pixel: one, unless antialiasing asks for more."""
    theta = taken(theta, part.matrices, dtype)
    make = _kept_base if max(size) <= _LONGEST_KEPT else _base
    for offsets in itertools.product(*map(range, part.samples)):
        base = make(tuple(size), offsets, part.samples, options.align_corners, dtype, theta.device)
        yield _grid(theta, base, options)


def _base(
    size: tuple[int, ...],
    offsets: tuple[int, ...],
    counts: tuple[int, ...],
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Base:
    """The positions of the sample that has a number, its offset, of a count in each pixel, on each axis."""
    axes = []
    with torch.inference_mode(False):  # they may be kept, and serve calls outside of inference mode
        for n, offset, count in zip(reversed(size), offsets, counts, strict=True):
            fine = n * count
            doubled = torch.arange(1 - fine + 2 * offset, fine, 2 * count, dtype=dtype, device=device)
            axes.append(doubled / max(fine - align_corners, 1))
        whole = last = None
        if math.prod(size) <= _MOST_WHOLE:
            ones = axes[0].new_ones(())
            whole = torch.stack([t.expand(size) for t in (*map(_along, axes, range(len(size))), ones)])
            last = whole.movedim(0, -1).unsqueeze(-2).contiguous()
    return Base(tuple(axes), whole, last)


_kept_base = functools.lru_cache(maxsize=64)(_base)


def _along(numbers: Tensor, axis: int) -> Tensor:
    """Shaped as an axis of (*size), x first."""
    return numbers.view(-1, *[1] * axis)


def rows_at(theta: Tensor, base: Base, bases: Tensor | None) -> Tensor:
    """What the rows of matrices give at every output position, by broadcasting: (matrices, *size, rows).

    In memory each row has a plane of its own, along which CPUs add several numbers at once.
    """
    dim = len(base.axes)
    matrices, rows, _ = theta.shape
    columns = theta[:, :, : dim + 1] if bases is not None else theta
    columns = columns.view(*columns.shape, *[1] * dim)
    if base.whole is not None:  # fewer operations, each on more numbers
        grid = (columns * base.whole).sum(2)
    else:
        *columns, total = columns.unbind(2)
        for axis in reversed(range(1, dim)):
            total = total + columns[axis] * _along(base.axes[axis], axis)
        grid = columns[0] * base.axes[0] + total
    if bases is not None:
        bends = _product(theta[..., dim + 1 :].flatten(0, 1), bases.flatten(0, 1).T)
        grid += bends.view(grid.shape)
    return grid.permute(0, *range(2, dim + 2), 1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Of matrices, in their dtype also under autocast."""
    with torch.autocast("cpu", enabled=False):
        return a @ b


def _grid(theta: Tensor, base: Base, options: Options) -> Grid:
    """Positions, made safe for PyTorch's CPU sampler."""
    dim = len(base.axes)
    bases = splines.basis(base.axes, options.points) if options.points else None
    grid = rows_at(theta, base, bases)
    divisor = unseen = None
    if theta.shape[1] > dim:
        divisor = grid[..., dim:]
        unseen = ~((divisor > 0) & (divisor < math.inf))
        divisor = divisor.masked_fill(unseen, 1)
        grid = grid[..., :dim] / divisor
        unseen = unseen.movedim(-1, 1)
    elif bases is None and _is_safe(theta):
        return Grid(base, grid, None, None, None)
    if options.padding_mode == "reflection":
        # PyTorch folds whatever is finite; the rest is taken for the first edge.
        grid = torch.where(grid.isfinite(), grid, -1)
    else:
        lost = grid.isnan() if options.padding_mode == "border" else ~grid.isfinite()
        if options.padding_mode != "border":
            lost_anywhere = lost.any(-1)[:, None]
            unseen = lost_anywhere if unseen is None else unseen | lost_anywhere
        grid = grid.masked_fill(lost, -_SAFE_THETA).clamp_(-_SAFE_THETA, _SAFE_THETA)
    return Grid(base, grid, divisor, unseen, bases)


def _is_safe(theta: Tensor) -> bool:
    """Whether every position of matrices without bends is one that PyTorch's sampler can convert."""
    least, most = theta.aminmax()  # NaN if one is
    return -_SAFE_THETA < least.item() and most.item() < _SAFE_THETA


def stacked(tensor: Tensor, count: int, axis: int) -> Tensor:
    """From (matrices, ...) to (images, ...): what an image's matrices have stands in a row along an axis."""
    if count == 1:
        return tensor
    return tensor.unflatten(0, (-1, count)).movedim(1, axis).flatten(axis, axis + 1)


def _sampled(images: Tensor, grid: Grid, part: Part, options: Options) -> Tensor:
    """(matrices, C, *size): the images at the grid, 0 where nothing is sampled."""
    sampler = torch.grid_sampler_2d if images.ndim == 4 else torch.grid_sampler_3d
    codes = (_MODES[options.mode], _PADDINGS[options.padding_mode], options.align_corners)
    output = sampler(images, stacked(grid.positions, part.count, 1), *codes)
    if part.count > 1:
        output = output.unflatten(2, (part.count, -1)).transpose(1, 2).flatten(0, 1)
    return output if grid.unseen is None else output.masked_fill(grid.unseen, 0)


def _uncovered(images: Tensor, grid: Grid, part: Part, options: Options) -> Tensor:
    """(matrices, 1, *size): the weight of all taps that lie outside; 0 where that is rounding."""
    ones = images.new_ones(()).expand(len(images), 1, *images.shape[2:])
    rest = 1 - _sampled(ones, grid, part, options)
    return torch.where(rest.abs() > 16 * torch.finfo(rest.dtype).eps, rest, 0)


def row_derivatives(grad_grid: Tensor, grid: Grid) -> Tensor:
    """From derivatives by positions to derivatives by what the rows of the matrix give."""
    if grid.divisor is None:
        return grad_grid
    quotient = grad_grid / grid.divisor
    return torch.cat((quotient, -(quotient * grid.positions).sum(-1, keepdim=True)), -1)


def grad_theta_of(grad_rows: Tensor, grid: Grid) -> Tensor:
    """Moments of derivatives by rows over the output positions: (matrices, rows, D + 1), more of a spline."""
    dim = len(grid.base.axes)
    if grid.unseen is not None:
        grad_rows = grad_rows.masked_fill(grid.unseen.movedim(1, -1), 0)
    if grid.base.last is not None:
        grad_theta = (grad_rows.unsqueeze(-1) * grid.base.last).sum(tuple(range(1, dim + 1)))
    else:
        columns, rest = [], grad_rows
        for axis, base in enumerate(grid.base.axes):
            over_others = rest
            for _ in range(axis + 1, dim):
                over_others = over_others.sum(1)
            columns.append((over_others * base[:, None]).sum(1))
            rest = _sum_along_x(rest) if axis == 0 else rest.sum(-2)
        grad_theta = torch.stack((*columns, rest), 2)
    if grid.bases is not None:
        moments = _product(grad_rows.flatten(1, 2).transpose(1, 2), grid.bases.flatten(0, 1))
        grad_theta = torch.cat((grad_theta, moments), 2)
    return grad_theta


def _sum_along_x(rows: Tensor) -> Tensor:
    """(..., W, rows) summed over W; pairs of numbers as complex ones, six times as fast."""
    if rows.shape[-1] == 2 and rows.is_contiguous():
        return torch.view_as_real(torch.view_as_complex(rows).sum(-1))
    return rows.sum(-2)
