"""Thin plate splines: from the offsets of control points to coefficients, and back for gradients.

The spline of Bookstein 1989 maps an output position o to o + d(o), where d is the smoothest interpolation of
the offsets d_i that the control points p_i have. In normalised coordinates

    d(o) = A (o, 1) + sum over i of w_i phi(|o - p_i|^2),    phi(s) = s log2 s,

with the weights and A from a linear system that depends on the points alone: w and A are a fixed matrix times
the offsets, computed once. So a spline is a matrix (2, 3 + P), the affine part before the weights, that is
multiplied with (x, y, 1, phi_1, ..., phi_P). Offsets of zero have weights of exactly zero: the identity. (The
logarithm's base scales the weights and changes nothing; GPUs compute that of base 2.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stn_triton import constants

# What a unit offset may give as a weight: points on a line, or nearly on top of each other, give more, and
# coordinates would lose their last digits. A regular grid of 32 x 32 points gives 107; two points a hundredth
# apart give 313.
_LARGEST_WEIGHT = 1e3
_numbers = constants.numbers_of("points")


def regular_points(rows: int, columns: int) -> list[float]:
    """A regular grid over [-1, 1]^2: x and y of one point after the other, x fastest."""
    ys, xs = ([2 * i / (n - 1) - 1 for i in range(n)] for n in (rows, columns))
    return [number for y in ys for x in xs for number in (x, y)]


def coefficients(offsets: Tensor, points: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Offsets (M, P, 2) as the matrices (M, 2, 3 + P) of splines."""
    return (
        directions(offsets, points, torch.float64)
        .add_(torch.eye(2, 3 + len(points) // 2, dtype=torch.float64, device=offsets.device))
        .to(dtype)
    )


def directions(offsets: Tensor, points: Sequence[float], dtype: torch.dtype) -> Tensor:
    """How matrices of splines change with the offsets: ``coefficients`` without the identity."""
    return _times(offsets.transpose(1, 2), _solution(points, offsets.device)).to(dtype)


def grad_offsets(grad: Tensor, points: Sequence[float], dtype: torch.dtype) -> Tensor:
    """The gradient for offsets (M, P, 2) from that for the matrices of splines."""
    return _times(grad, _solution(points, grad.device).T).transpose(1, 2).to(dtype).contiguous()


def basis(base: Sequence[Tensor], points: Sequence[float]) -> Tensor:
    """The phi_i at output positions given by their coordinates on each axis, x first: (H, W, P)."""
    x, y = base
    at = centres(points, x.device, x.dtype)
    square = (x[:, None] - at[:, 0]).square() + (y[:, None, None] - at[:, 1]).square()
    return square * square.clamp(min=torch.finfo(square.dtype).tiny).log2()


def centres(points: Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The points (P, 2) on a device."""
    return _numbers(points, device, dtype).view(-1, 2)


@constants.once_per_device("points")
def _solution(points: Sequence[float], device: torch.device) -> Tensor:
    """(3 + P, P): the affine part and the weights that a unit offset of each point gives."""
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
    if info or not solution.abs().max() < _LARGEST_WEIGHT:
        raise ValueError(
            "points must be at least three that are apart, a hundredth or more in normalised coordinates, "
            f"and not on one line, got {at.tolist()}"
        )
    return solution.roll(3, 0).to(device)


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """(M, 2, n) times (m, n) transposed, in fp64, which autocast leaves alone."""
    rows = rows.to(torch.float64)
    if rows.is_cuda and torch.are_deterministic_algorithms_enabled():  # cuBLAS would want settings for it
        return (rows[:, :, None] * matrix).sum(3)
    return rows @ matrix.T
