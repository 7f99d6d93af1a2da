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

# How far off a unit offset may send its point after the solution in fp64. Two points ten times as close have
# weights a hundred times as large, of opposite signs: in [-1, 1] this is reached some 3e-6 apart, and 0.001
# apart the error is 1e-10. Evaluation has errors of its own, of about 1e-8 over the distance in fp32.
_LARGEST_ERROR = 2.0**-19
# Points no farther from a line than this, relative to coordinates, may be on it but for their rounding.
_FLATTEST = 2.0**-30
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


def check(name: str, points: Sequence[float]) -> None:
    """Raise ValueError if the points, those of an argument, have no spline; traced ones are left alone."""
    if not constants.is_traced():
        _solution(points, torch.device("cpu"), name)


@constants.once_per_device("points")
def _solution(points: Sequence[float], device: torch.device, name: str = "points") -> Tensor:
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
    error = torch.finfo(torch.float64).eps * solution.abs().max() * system.abs().max()
    if info or not error < _LARGEST_ERROR or _flatness(at) < _FLATTEST:
        raise ValueError(f"{name} {_what_is_wrong(at)}")
    return solution.roll(3, 0).to(device)


def _what_is_wrong(at: Tensor) -> str:
    """Why points (P, 2) have no spline: they lie on a line, or else the two nearest are too close."""
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
        "fp64 (1e-4 is enough in [-1, 1])"
    )


def _flatness(at: Tensor) -> Tensor:
    """How far points (P, 2) lie from the line that fits them best, relative to the largest coordinate."""
    at = at / at.abs().max().clamp(min=torch.finfo(at.dtype).tiny)
    centred = at - at.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return (centred @ directions[-1]).abs().max()


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """(M, 2, n) times (m, n) transposed, in fp64, which autocast leaves alone."""
    rows = rows.to(torch.float64)
    if rows.is_cuda and torch.are_deterministic_algorithms_enabled():  # cuBLAS would want settings for it
        return (rows[:, :, None] * matrix).sum(3)
    return rows @ matrix.T
