"""Thin plate splines: coefficients from the offsets of control points, and gradients of the offsets.

The spline of Bookstein 1989 maps an output position o to o + d(o), where d is the smoothest interpolation of
the offsets d_i of control points p_i. In normalised coordinates

    d(o) = A (o, 1) + sum over i of w_i phi(|o - p_i|^2),    phi(s) = s log2 s,

w and A solve a linear system that depends on the points alone, so they are a matrix, computed once, times the
offsets. A spline is a matrix (2, 3 + P), the affine part before the weights, which is multiplied with
(x, y, 1, phi_1, ..., phi_P). Offsets of zero have weights of exactly zero: the identity. (The base of the
logarithm only scales the weights; GPUs compute base 2.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stn_triton import constants

# Largest allowed error of a point moved by a unit offset, after the solution in fp64. Two points ten times as
# close have weights a hundred times as large, of opposite signs: in [-1, 1] points about 3e-6 apart reach the
# limit, and 0.001 apart the error is 1e-10. Evaluation in fp32 adds about 1e-8 over the distance.
_LARGEST_ERROR = 2.0**-19
# Points count as lying on a line if their distance from it is smaller than this, relative to coordinates.
_FLATTEST = 2.0**-30
_numbers = constants.numbers_of("points")


def regular_points(rows: int, columns: int) -> list[float]:
    """A regular grid over [-1, 1]^2: x and y of each point in one list, x fastest."""
    ys, xs = ([2 * i / (n - 1) - 1 for i in range(n)] for n in (rows, columns))
    return [number for y in ys for x in xs for number in (x, y)]


def coefficients(offsets: Tensor, points: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Matrices (M, 2, 3 + P) of the splines with offsets (M, P, 2)."""
    return (
        directions(offsets, points, torch.float64)
        .add_(torch.eye(2, 3 + len(points) // 2, dtype=torch.float64, device=offsets.device))
        .to(dtype)
    )


def directions(offsets: Tensor, points: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Tangents of matrices of splines from tangents of offsets: ``coefficients`` without the identity."""
    return _times(offsets.transpose(1, 2), _solution(points, offsets.device)).to(dtype)


def grad_offsets(grad: Tensor, points: Sequence[float], dtype: torch.dtype) -> Tensor:
    """The gradient for offsets (M, P, 2) from the gradient for the matrices of splines."""
    return _times(grad, _solution(points, grad.device).T).transpose(1, 2).to(dtype).contiguous()


def basis(base: Sequence[Tensor], points: Sequence[float]) -> Tensor:
    """The phi_i, (H, W, P), at the output positions with coordinates ``base`` on each axis, x first."""
    x, y = base
    at = centres(points, x.device, x.dtype)
    square = (x[:, None] - at[:, 0]).square() + (y[:, None, None] - at[:, 1]).square()
    return square * square.clamp(min=torch.finfo(square.dtype).tiny).log2()


def centres(points: Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The points (P, 2) on a device."""
    return _numbers(points, device, dtype).view(-1, 2)


def check(name: str, points: Sequence[float]) -> None:
    """Raise ValueError, naming the argument, if the points have no spline; nothing is checked in a trace."""
    if not constants.is_traced():
        _solution(points, torch.device("cpu"), name)


@constants.once_per_device("points")
def _solution(points: Sequence[float], device: torch.device, name: str = "points") -> Tensor:
    """(3 + P, P): the affine part and the weights for a unit offset of each point."""
    at = torch.tensor(points, dtype=torch.float64).view(-1, 2)
    count = len(at)
    affine = torch.cat((at, at.new_ones((count, 1))), 1)
    square = (at[:, None] - at).square().sum(2)
    system = torch.zeros(count + 3, count + 3, dtype=torch.float64)
    system[:count, :count] = square * square.clamp(min=torch.finfo(torch.float64).tiny).log2()
    system[:count, count:] = affine
    system[count:, :count] = affine.T
    unit = torch.eye(count + 3, count, dtype=torch.float64)
    solution, info = torch.linalg.solve_ex(system, unit)
    error = torch.finfo(torch.float64).eps * solution.abs().max() * system.abs().max()
    if info or not error < _LARGEST_ERROR or _flatness(at) < _FLATTEST:
        raise ValueError(f"{name} {_what_is_wrong(at)}")
    return solution.roll(3, 0).to(device)


def _what_is_wrong(at: Tensor) -> str:
    """The reason why points (P, 2) have no spline: all on one line, or the two nearest are too close."""
    unit = at.abs().max().clamp(min=torch.finfo(at.dtype).tiny)
    x, y = (at / unit).unbind(1)
    distances = torch.hypot(x[:, None] - x, y[:, None] - y).fill_diagonal_(torch.inf)
    nearest, pair = distances.flatten().min(0)
    if _flatness(at) < nearest:
        first = ", ".join([str(tuple(point)) for point in at[:3].tolist()])
        return f"must be at least three that are not on one line, got {len(at)}, the first at {first}"
    i, j = sorted(divmod(pair.item(), len(at)))
    a, b = (tuple(point) for point in at[[i, j]].tolist())
    distance = (nearest * unit).item()
    return (
        f"must be apart, got number {i} at {a} and number {j} at {b}: {distance:.3g} apart, too close for "
        "fp64 (points in [-1, 1] may always be 1e-4 apart)"
    )


def _flatness(at: Tensor) -> Tensor:
    """Largest distance of points (P, 2) from the line of best fit, relative to the largest coordinate."""
    at = at / at.abs().max().clamp(min=torch.finfo(at.dtype).tiny)
    centred = at - at.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return (centred @ directions[-1]).abs().max()


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """(M, 2, n) times the transpose of (m, n), in fp64, which autocast does not change."""
    rows = rows.to(torch.float64)
    if rows.is_cuda and torch.are_deterministic_algorithms_enabled():  # cuBLAS would need settings
        return (rows[:, :, None] * matrix).sum(3)
    return rows @ matrix.T
