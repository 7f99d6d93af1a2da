"""The sign of a homography under which its picture is seen.

A homography M maps p in the output to q = (X / Z, Y / Z) with (X, Y, Z) = M p. -M gives the same q, but the
operator samples only where Z > 0. Libraries that divide M by its last entry only ensure Z > 0 at pixel
(0, 0). In normalised coordinates, the input is seen where Z > 0, -Z <= X <= Z and -Z <= Y <= Z. These are
linear bounds on p = (x, y, 1), as are -1 <= x <= 1 and -1 <= y <= 1, the output. So the part of the output
that shows the input is a convex polygon. The sign with the larger polygon is chosen.

Area of a polygon: each bound n.p + c >= 0 gives one side, a segment of the line p = f + t d. Here
f = -c n / |n|^2 is the point of the line nearest to the origin, and d is n turned by 90 degrees. Every other
bound limits t from above or from below. The side and the origin form a triangle of area
(t_high - t_low) c / 2, negative if the origin is outside this bound. The sum of these areas is the area.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stn_triton.transforms.algebra import is_affine
from stn_triton.transforms.inputs import Sizes
from stn_triton.transforms.pixels import from_pixels, of_sizes

_BOUNDS = 8  # four of the input that is seen, four of the output
_TOLERANCE = 1e-9  # for comparing directions and places of lines
_OUTPUT = [1.0, 0.0, 1.0, -1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, -1.0, 1.0]  # x, -x, y, -y >= -1


def seen_from_pixels(
    matrix: Tensor, size_in: Sizes, size_out: Sizes | None, *, align_corners: bool
) -> Tensor:
    """Convert a library's matrix into theta, giving a homography the sign that shows its picture."""
    theta = from_pixels(matrix, size_in, size_out, align_corners=align_corners)
    if is_affine(theta):
        return theta
    # The sign is that of align_corners=False, so that it is the same for both conventions.
    return theta * sign(from_pixels(matrix, size_in, size_out) if align_corners else theta)


def sign(theta: Tensor) -> Tensor:
    """Factors, 1 or -1, with which homographies (..., 3, 3) show the input in more of the output.

    Theta must be for ``align_corners=False``, where -1 and 1 are the edges of an image. The factor is 1 if
    neither sign shows anything or theta is not finite.

    Example:
        >>> import torch
        >>> sign(torch.diag(torch.tensor([-1.0, -1.0, -1.0])))
        tensor([[-1.]])
    """
    matrix = theta.detach().double()
    matrix = matrix / matrix.abs().amax((-2, -1), keepdim=True)  # the scale has no meaning
    x, y, z = matrix.unbind(-2)
    seen = torch.stack((z - x, z + x, z - y, z + y), dim=-2)
    output = of_sizes(_OUTPUT, matrix).view(4, 3).expand_as(seen)
    before, behind = (_area(torch.cat((bounds, output), dim=-2)) for bounds in (seen, -seen))
    return torch.where(behind > before, -1.0, 1.0).to(theta.dtype)[..., None, None]


def _area(bounds: Tensor) -> Tensor:
    """Area (...) where all bounds (..., K, 3) hold; (n_x, n_y, c) is the bound n.p + c >= 0."""
    n_x, n_y, c = bounds.unbind(-1)

    def pairs(own: Tensor, other: Tensor) -> Tensor:
        return own.unsqueeze(-1) * other.unsqueeze(-2)

    square = n_x * n_x + n_y * n_y
    norm = square.sqrt()
    along = pairs(n_x, n_x) + pairs(n_y, n_y)
    at_foot = c.unsqueeze(-2) - along * (c / square).unsqueeze(-1)
    slope = pairs(n_x, n_y) - pairs(n_y, n_x)
    # Lines that are parallel up to rounding have no useful intersection.
    is_parallel = slope.abs() <= _TOLERANCE * pairs(norm, norm)
    margin = _TOLERANCE * (c.abs().unsqueeze(-2) + pairs(c.abs() / norm, norm))
    at = torch.arange(_BOUNDS, device=bounds.device)  # runtimes of ONNX have no torch.eye of bools
    is_missed = (is_parallel & (at_foot < -margin) & (at != at[:, None])).any(-1)
    # If several bounds lie on one line, only the first counts.
    is_repeated = (is_parallel & (at_foot.abs() <= margin) & (along > 0) & (at < at[:, None])).any(-1)
    end = -at_foot / slope
    low = torch.where((slope > 0) & ~is_parallel, end, -math.inf).amax(-1)
    high = torch.where((slope < 0) & ~is_parallel, end, math.inf).amin(-1)
    length = torch.where(is_missed | is_repeated | (square == 0), 0, (high - low).clamp(min=0))
    return (length * c).sum(-1, dtype=c.dtype) / 2
