"""Positions that output pixels sample, in plain PyTorch, and gradients of theta from those of positions.

The grid is built by broadcasting, without a batched matrix product. Output positions are those of PyTorch's
base grid in centred form, ``x = (2 ow - (W_out - 1)) / S`` with ``S = W_out`` or, for align_corners,
``W_out - 1``. They are rounded once, where ``F.affine_grid`` rounds several times.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stn_triton import splines
from stn_triton.options import Options
from stn_triton.reference_parts import ALL, Part

# PyTorch's CPU sampler converts coordinates to integers, which is undefined for those far beyond this.
_SAFE_THETA = 1e4
# Larger coordinates count as not finite under a padding that PyTorch does not have.
_FARTHEST = 1e30
# Positions on axes up to this length are kept for later calls.
_LONGEST_KEPT = 4096
_MOST_KEPT = 64
# Outputs of at most so many pixels are small: the number of PyTorch operations decides their time.
_MOST_WHOLE = 4096
# Moments over outputs of at most so many pixels are summed by one operation.
_MOST_MOMENTS = 256
# By the number of spatial axes.
_ONES = {2: (1, 1), 3: (1, 1, 1)}
_SPATIAL = {2: (1, 2), 3: (1, 2, 3)}
_ROWS_LAST = {2: (0, 2, 3, 1), 3: (0, 2, 3, 4, 1)}


class Base(NamedTuple):
    """Normalised positions of samples in the output; below, ``size`` is their number per axis, x last."""

    axes: tuple[Tensor, ...]
    """Positions along each axis, x first."""
    whole: Tensor | None
    """(D + 1, *size): ones, then the positions of all samples, x last. None if there are many."""
    last: Tensor | None
    """``whole`` with shape (*size, 1, D + 1), x first, ones last. None for more than a few samples."""

    def is_tiny(self, matrices: int) -> bool:
        """Whether all matrices have so few pixels that ``whole`` is faster; results have the same bits."""
        return self.whole is not None and matrices * self.whole.stride(0) <= _MOST_WHOLE


class Grid(NamedTuple):
    """Input positions of the samples of a part; with antialiasing, those of a finer output."""

    part: Part
    base: Base
    positions: Tensor
    """(matrices, *size, D), normalised, all finite."""
    divisor: Tensor | None
    """(matrices, *size, 1) for a projective map: Z, by which X and Y are divided."""
    unseen: Tensor | None
    """(matrices, 1, *size): where nothing is sampled."""
    bases: Tensor | None
    """(H, W, P) for a spline: the factors of its weights."""
    lost: Tensor | None = None
    """(matrices, *size, D) for a padding that PyTorch does not have: coordinates that were not finite."""


def taken(tensor: Tensor, which: slice | Tensor, dtype: torch.dtype) -> Tensor:
    """Some entries in a dtype. Steps that change nothing are skipped: each would take a microsecond."""
    if which is not ALL:
        tensor = tensor[which]
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def grid_of(theta: Tensor, part: Part, size: Sequence[int], options: Options, dtype: torch.dtype) -> Grid:
    """The grid of a part; ``size`` is the size of the whole output."""
    is_kept = part.window is None and max(size) * max(part.samples) <= _LONGEST_KEPT
    window = tuple([(0, n) for n in size])
    if part.window is not None:
        window = tuple([(side.start, side.stop) for side in part.window])
    make = _kept_base if is_kept else _base
    base = make(tuple(size), window, part.samples, options.align_corners, dtype, theta.device)
    return _grid(taken(theta, part.matrices, dtype), part, base, options)


def _base(
    size: tuple[int, ...],
    window: tuple[tuple[int, int], ...],
    counts: tuple[int, ...],
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Base:
    """The positions of all samples of a window of the output: (first pixel, end) on each axis."""
    axes = []
    with torch.inference_mode(False):  # kept tensors are also used outside of inference mode
        for n, (first, end), count in zip(reversed(size), reversed(window), counts, strict=True):
            ends = [1 - n * count + 2 * pixel * count for pixel in (first, end)]
            doubled = torch.arange(*ends, 2, dtype=dtype, device=device)
            axes.append(doubled / max(n * count - align_corners, 1))
        fine = [len(numbers) for numbers in reversed(axes)]
        whole = last = None
        if math.prod(fine) <= _MOST_WHOLE:
            ones = axes[0].new_ones(())
            along = [_along(numbers, axis) for axis, numbers in enumerate(axes)]
            whole = torch.stack([numbers.expand(fine) for numbers in (ones, *reversed(along))])
            if math.prod(fine) <= _MOST_MOMENTS:
                last = whole.flip(0).movedim(0, -1).unsqueeze(-2).contiguous()
    return Base(tuple(axes), whole, last)


_kept_base = functools.lru_cache(maxsize=_MOST_KEPT)(_base)


def _along(numbers: Tensor, axis: int) -> Tensor:
    """Reshape ``numbers`` to broadcast along an axis of (*size); axis 0 is x."""
    return numbers.view(-1, *[1] * axis)


def rows_at(theta: Tensor, base: Base, bases: Tensor | None) -> Tensor:
    """Products of the rows of matrices with every output position: (matrices, *size, rows).

    In memory each row has its own plane, so that CPUs can use vector instructions along it.
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
    """Matrix product in the dtype of the matrices, also under autocast."""
    with torch.autocast("cpu", enabled=False):
        return a @ b


def _grid(theta: Tensor, part: Part, base: Base, options: Options) -> Grid:
    """The grid of matrices, with positions that are safe for PyTorch's CPU sampler."""
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
        return Grid(part, base, grid, None, None, None)
    padding = options.padding
    if padding.sampler is None:
        lost = ~(grid.abs() < _FARTHEST)
        return Grid(part, base, grid.masked_fill(lost, 0), divisor, unseen, bases, lost)
    if padding.repeats:
        # PyTorch reflects all finite positions; others become the first edge.
        grid = torch.where(grid.isfinite(), grid, -1)
    else:
        lost = ~grid.isfinite() if padding.has_outside else grid.isnan()
        if padding.has_outside:
            lost_anywhere = lost.any(-1)[:, None]
            unseen = lost_anywhere if unseen is None else unseen | lost_anywhere
        grid = grid.masked_fill(lost, -_SAFE_THETA).clamp_(-_SAFE_THETA, _SAFE_THETA)
    return Grid(part, base, grid, divisor, unseen, bases)


def _is_safe(theta: Tensor) -> bool:
    """Whether PyTorch's sampler can convert every position of affine matrices to integers."""
    least, most = theta.aminmax()  # NaN if one is
    return least.item() > -_SAFE_THETA and most.item() < _SAFE_THETA


def joined(tensors: Sequence[Tensor], grids: Sequence[Grid], axis: int) -> Tensor:
    """Join (matrices, ...) of each grid to (images, ...): those of an image are stacked along ``axis``."""
    rows = []
    for tensor, grid in zip(tensors, grids, strict=True):
        count = grid.part.count
        if count > 1:
            tensor = tensor.unflatten(0, (-1, count)).movedim(1, axis).flatten(axis, axis + 1)
        rows.append(tensor)
    if len(rows) == 1:
        return rows[0]
    dim = len(grids[0].base.axes)
    flat = torch.cat([row.flatten(axis, axis + dim - 1) for row in rows], axis)
    return flat.unflatten(axis, (-1, *_ONES[dim][1:]))


def parted(tensor: Tensor, grids: Sequence[Grid], axis: int) -> list[Tensor]:
    """Split (images, ...) into (matrices, ...) of each grid: the inverse of ``joined``."""
    if len(grids) == 1 and grids[0].part.count == 1:
        return [tensor]
    flat = tensor.flatten(axis, axis + len(grids[0].base.axes) - 1)
    shapes = [(grid.part.count, *grid.positions.shape[1:-1]) for grid in grids]
    pieces = flat.split([math.prod(shape) for shape in shapes], axis)
    return [
        piece.unflatten(axis, shape).movedim(axis, 1).flatten(0, 1)
        for piece, shape in zip(pieces, shapes, strict=True)
    ]


def joined_lost(grids: Sequence[Grid]) -> Tensor | None:
    """``lost`` of all grids joined; None if no grid has it."""
    if all(grid.lost is None for grid in grids):
        return None
    each = [torch.zeros_like(g.positions, dtype=torch.bool) if g.lost is None else g.lost for g in grids]
    return joined(each, grids, 1)


def joined_unseen(grids: Sequence[Grid]) -> Tensor | None:
    """``unseen`` of all grids joined; None if no grid has it."""
    if all(grid.unseen is None for grid in grids):
        return None
    none = [torch.zeros_like(grid.positions[..., 0], dtype=torch.bool)[:, None] for grid in grids]
    each = [seen if grid.unseen is None else grid.unseen for seen, grid in zip(none, grids, strict=True)]
    return joined(each, grids, 2)


def pooled(fine: Tensor, part: Part) -> Tensor:
    """Average the samples of each output pixel: (matrices, C, ...)."""
    if math.prod(part.samples) == 1:
        return fine
    if fine.numel() == 0:  # PyTorch does not pool empty tensors
        return fine[(..., *[slice(None, None, n) for n in part.samples[::-1]])]
    pool = F.avg_pool2d if fine.ndim == 4 else F.avg_pool3d
    return pool(fine, part.samples[::-1])


def spread(grads: Sequence[Tensor], grids: Sequence[Grid]) -> Tensor:
    """Gradients of all samples, joined, from those of output pixels (matrices, C, ...) of each grid."""
    parts = [grid.part for grid in grids]
    if len(parts) == 1 and math.prod(parts[0].samples) == 1:
        return joined(grads, grids, 2)
    fine = [grid.positions.shape[1:-1] for grid in grids]
    lengths = [part.count * size.numel() for part, size in zip(parts, fine, strict=True)]
    flat = grads[0].new_empty(len(grads[0]) // parts[0].count, grads[0].shape[1], sum(lengths))
    for grad, part, piece in zip(grads, parts, flat.split(lengths, 2), strict=True):
        grad = (grad / math.prod(part.samples)).unflatten(0, (-1, part.count)).movedim(1, 2)
        shape = list(grad.shape)
        for axis, count in enumerate(part.samples):  # x, the last axis, first
            grad = grad.unsqueeze(grad.ndim - 2 * axis)
            shape.insert(len(shape) - 2 * axis, count)
        piece.view(shape).copy_(grad)
    rest = fine[0][1:] if len(fine) == 1 else _ONES[len(fine[0])][1:]
    return flat.unflatten(2, (-1, *rest))


def row_derivatives(grad_grid: Tensor, grid: Grid) -> Tensor:
    """Derivatives by the results of ``rows_at`` from those by positions."""
    if grid.divisor is None:
        return grad_grid
    quotient = grad_grid / grid.divisor
    return torch.cat((quotient, -(quotient * grid.positions).sum(-1, keepdim=True)), -1)


def grad_theta_of(grad_rows: Tensor, grid: Grid) -> Tensor:
    """Gradients of theta from derivatives by the results of ``rows_at``: moments over output positions."""
    dim = len(grid.base.axes)
    if grid.unseen is not None:
        grad_rows = grad_rows.masked_fill(grid.unseen.movedim(1, -1), 0)
    if grid.base.last is not None:  # for every batch size, so that bits do not depend on it
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
    """Sum (..., W, rows) over W. Two rows are summed as complex numbers, which is six times as fast."""
    if rows.shape[-1] == 2 and rows.is_contiguous():
        return torch.view_as_real(torch.view_as_complex(rows).sum(-1))
    return rows.sum(-2)
