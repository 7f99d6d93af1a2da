"""Where output pixels lie in the input, in plain PyTorch, and gradients of theta from those of positions.

The grid is built by broadcasting in the centred form of PyTorch's base grid, ``x = (2 ow - (W_out - 1)) / S``
with ``S = W_out`` or, for align_corners, ``W_out - 1``: one rounding where ``F.affine_grid`` has several, and
no batched matrix product.
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
from stn_triton.options import Options

# Beyond this PyTorch's CPU sampler may meet coordinates that it converts to integers undefined.
_SAFE_THETA = 1e4
# Beyond this a coordinate of a padding that PyTorch does not have is taken for one that is not finite.
_FARTHEST = 1e30
# Positions on longer axes are made anew by each call.
_LONGEST_KEPT = 4096
_MOST_KEPT = 64
# Pixels of outputs so small that the number of operations decides how long they take.
_MOST_WHOLE = 4096
# Pixels of outputs so small that moments over them are summed at once.
_MOST_MOMENTS = 256
# By the number of spatial axes.
_ONES = {2: (1, 1), 3: (1, 1, 1)}
_SPATIAL = {2: (1, 2), 3: (1, 2, 3)}
_ROWS_LAST = {2: (0, 2, 3, 1), 3: (0, 2, 3, 4, 1)}


ALL = slice(None)


class Part(NamedTuple):
    """Matrices that can be sampled at once: as many for each image, as many samples for each pixel."""

    images: slice
    matrices: slice | Tensor
    """A range, or (images * count,) indices; those of an image after each other. ALL together with images."""
    count: int
    """Matrices per image."""
    samples: tuple[int, ...]
    """Per output pixel and axis, x first."""


class Base(NamedTuple):
    """Normalised output positions, of one sample of each pixel."""

    axes: tuple[Tensor, ...]
    """Those on each axis, x first."""
    whole: Tensor | None
    """(D + 1, *size): ones, then those of every pixel, x last. None of a large output."""
    last: Tensor | None
    """The same as (*size, 1, D + 1), x first. None of an output that is not small."""

    def is_tiny(self, matrices: int) -> bool:
        """Whether so many matrices give so few pixels that ``whole`` is the faster way, to the same bits."""
        return self.whole is not None and matrices * self.whole.stride(0) <= _MOST_WHOLE


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
    lost: Tensor | None = None
    """(matrices, *size, D), of a padding that PyTorch does not have: coordinates that were not finite."""


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
    is_kept = max(size) <= _LONGEST_KEPT and math.prod(part.samples) <= _MOST_KEPT // 4
    make = _kept_base if is_kept else _base
    size = tuple(size)
    for offsets in itertools.product(*map(range, part.samples)):
        base = make(size, offsets, part.samples, options.align_corners, dtype, theta.device)
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
            along = [_along(numbers, axis) for axis, numbers in enumerate(axes)]
            whole = torch.stack([numbers.expand(size) for numbers in (ones, *reversed(along))])
            if math.prod(size) <= _MOST_MOMENTS:
                last = whole.flip(0).movedim(0, -1).unsqueeze(-2).contiguous()
    return Base(tuple(axes), whole, last)


_kept_base = functools.lru_cache(maxsize=_MOST_KEPT)(_base)


def _along(numbers: Tensor, axis: int) -> Tensor:
    """Shaped as an axis of (*size), x first."""
    return numbers.view(-1, *[1] * axis)


def rows_at(theta: Tensor, base: Base, bases: Tensor | None) -> Tensor:
    """What the rows of matrices give at every output position, by broadcasting: (matrices, *size, rows).

    In memory each row has a plane of its own, along which CPUs add several numbers at once.
    """
    dim = len(base.axes)
    columns = theta[:, :, : dim + 1] if bases is not None else theta
    shape = (*columns.shape, *_ONES[dim])
    if base.is_tiny(theta.shape[0]):  # fewer operations, each on more numbers, in the same order
        grid = (columns.flip(2).view(shape) * base.whole).sum(2)
    else:
        *columns, total = columns.view(shape).unbind(2)
        for axis in reversed(range(1, dim)):
            total = total + columns[axis] * _along(base.axes[axis], axis)
        grid = columns[0] * base.axes[0] + total
    if bases is not None:
        bends = _product(theta[..., dim + 1 :].flatten(0, 1), bases.flatten(0, 1).T)
        grid += bends.view(grid.shape)
    return grid.permute(_ROWS_LAST[dim])


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
    padding = options.padding
    if padding.sampler is None:
        lost = ~(grid.abs() < _FARTHEST)
        return Grid(base, grid.masked_fill(lost, 0), divisor, unseen, bases, lost)
    if padding.repeats:
        # PyTorch folds whatever is finite; the rest is taken for the first edge.
        grid = torch.where(grid.isfinite(), grid, -1)
    else:
        lost = ~grid.isfinite() if padding.has_outside else grid.isnan()
        if padding.has_outside:
            lost_anywhere = lost.any(-1)[:, None]
            unseen = lost_anywhere if unseen is None else unseen | lost_anywhere
        grid = grid.masked_fill(lost, -_SAFE_THETA).clamp_(-_SAFE_THETA, _SAFE_THETA)
    return Grid(base, grid, divisor, unseen, bases)


def _is_safe(theta: Tensor) -> bool:
    """Whether every position of matrices without bends is one that PyTorch's sampler can convert."""
    least, most = theta.aminmax()  # NaN if one is
    return least.item() > -_SAFE_THETA and most.item() < _SAFE_THETA


def stacked(tensor: Tensor | None, count: int, axis: int) -> Tensor | None:
    """From (matrices, ...) to (images, ...): what an image's matrices have stands in a row along an axis."""
    if count == 1 or tensor is None:
        return tensor
    return tensor.unflatten(0, (-1, count)).movedim(1, axis).flatten(axis, axis + 1)


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
    if grid.base.last is not None:  # whatever the batch, so that bits do not depend on it
        grad_theta = (grad_rows.unsqueeze(-1) * grid.base.last).sum(_SPATIAL[dim])
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
