"""The sign of a homography under which its picture is seen.

A homography M maps p in the output to q = (X / Z, Y / Z) with (X, Y, Z) = M p. Its negative gives the same q;
but the operator samples where Z > 0 alone, and libraries that divide by the last entry of M leave a sign that
only pixel (0, 0) has agreed to. Under one sign the input is seen where Z > 0, -Z <= X <= Z and -Z <= Y <= Z
in normalised coordinates: linear bounds on p = (x, y, 1), as are -1 <= x <= 1 and -1 <= y <= 1. So what is
seen is a convex polygon, and the sign is that of the larger one.

Its area: a bound n.p + c >= 0 touches the polygon on a segment of the line p = f + t d, where
f = -c n / |n|^2 is the foot of the origin and d is n turned by 90 degrees. Every other bound makes t larger
or smaller than some number. The segment and the origin span a triangle of area (t_high - t_low) c / 2,
negative where the origin is outside; their sum is the area.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stn_triton.transforms.algebra import is_affine
from stn_triton.transforms.inputs import Sizes
from stn_triton.transforms.pixels import from_pixels, of_sizes

_BOUNDS = 8  # of what is seen, and of the output
_TOLERANCE = 1e-9  # of directions and places of lines
_OUTPUT = [1.0, 0.0, 1.0, -1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, -1.0, 1.0]  # x, -x, y, -y >= -1


def seen_from_pixels(
    matrix: Tensor, size_in: Sizes, size_out: Sizes | None, *, align_corners: bool
) -> Tensor:
    """``from_pixels`` of a library's matrix, which for a homography has the sign that shows its picture."""
    theta = from_pixels(matrix, size_in, size_out, align_corners=align_corners)
    if is_affine(theta):
        return theta
    # The same sign for both conventions.
    return theta * sign(from_pixels(matrix, size_in, size_out) if align_corners else theta)


def sign(theta: Tensor) -> Tensor:
    """1 or -1: by which to multiply homographies (..., 3, 3) so that more of the output shows the input.

    For theta as it is with ``align_corners=False``, where -1 and 1 are the edges of an image. It is 1 too
    where neither sign shows anything, or where theta is not finite.

    Example:
        >>> import torch
        >>> sign(torch.diag(torch.tensor([-1.0, -1.0, -1.0])))
        tensor([[-1.]])
    """
    matrix = theta.detach().double()
    matrix = matrix / matrix.abs().amax((-2, -1), keepdim=True)  # its scale says nothing
    x, y, z = matrix.unbind(-2)
    seen = torch.stack((z - x, z + x, z - y, z + y), dim=-2)
    output = of_sizes(_OUTPUT, matrix).view(4, 3).expand_as(seen)
    before, behind = (_area(torch.cat((bounds, output), dim=-2)) for bounds in (seen, -seen))
    return torch.where(behind > before, -1.0, 1.0).to(theta.dtype)[..., None, None]


def _area(bounds: Tensor) -> Tensor:
    """The area (...) where all bounds (..., K, 3) hold; each (n_x, n_y, c) says n.p + c >= 0."""
    n_x, n_y, c = bounds.unbind(-1)

    def pairs(own: Tensor, other: Tensor) -> Tensor:
        return own.unsqueeze(-1) * other.unsqueeze(-2)

    square = n_x * n_x + n_y * n_y
    norm = square.sqrt()
    along = pairs(n_x, n_x) + pairs(n_y, n_y)
    at_foot = c.unsqueeze(-2) - along * (c / square).unsqueeze(-1)
    slope = pairs(n_x, n_y) - pairs(n_y, n_x)
    # Lines that are parallel but for rounding: where they meet says nothing.
    is_parallel = slope.abs() <= _TOLERANCE * pairs(norm, norm)
    margin = _TOLERANCE * (c.abs().unsqueeze(-2) + pairs(c.abs() / norm, norm))
    at = torch.arange(_BOUNDS, device=bounds.device)  # runtimes of ONNX have no torch.eye of bools
    is_missed = (is_parallel & (at_foot < -margin) & (at != at[:, None])).any(-1)
    # Of bounds on the same line the first one counts.
    is_repeated = (is_parallel & (at_foot.abs() <= margin) & (along > 0) & (at < at[:, None])).any(-1)
    end = -at_foot / slope
    low = torch.where((slope > 0) & ~is_parallel, end, -math.inf).amax(-1)
    high = torch.where((slope < 0) & ~is_parallel, end, math.inf).amin(-1)
    length = torch.where(is_missed | is_repeated | (square == 0), 0, (high - low).clamp(min=0))
    return (length * c).sum(-1, dtype=c.dtype) / 2
