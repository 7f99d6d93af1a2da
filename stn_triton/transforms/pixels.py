"""Conversion between theta and matrices of pixels, on which the converters for other libraries are built.

A position p in pixels is 0 at the centre of the first pixel. In both corner conventions the normalised
position is a (p - c), with c = (S - 1) / 2 the centre of the axis, and a = 2 / S, or 2 / (S - 1) with
``align_corners=True``. So M, from output to input pixels, becomes theta = A_in T(-c_in) M T(c_out) A_out^-1,
where A scales by a and T shifts. Equal sizes cancel exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stn_triton import constants, tracing, validation
from stn_triton.transforms import inputs
from stn_triton.transforms.algebra import is_affine, with_shift
from stn_triton.transforms.builders import Numbers
from stn_triton.transforms.inputs import Sizes

SHAPES = {2: ((2, 3), (3, 3)), 3: ((3, 4),)}
_numbers = constants.numbers_of("size_in and size_out")


@tracing.overridable
def from_pixels(
    matrix: Numbers, size_in: Sizes, size_out: Sizes | None = None, *, align_corners: bool = False
) -> Tensor:
    """Convert a matrix from output to input pixels into theta; 0 is the centre of the first pixel.

    A homography's sign matters, as in the operator: positions with a negative third coordinate lie behind
    the horizon and sample nothing. If a matrix was divided by its last entry, or its sign has no meaning, use
    ``from_cv2(matrix, size_in, size_out, inverse_map=True)``, which chooses the sign.

    Args:
        matrix: (..., 2, 3), (..., 3, 4), or (..., 3, 3) for homographies; floating; a tensor or an array. It
            maps (x, y[, z], 1) in the output to (x, y[, z]) in the input, both in pixels.
        size_in: (H, W) or (D, H, W) of the input with which the operator will be called.
        size_out: (H, W) or (D, H, W) of the output. Default: ``size_in``.
        align_corners: the ``align_corners`` of the operator. Both values sample the same positions.
            Only ``padding_mode="reflection"`` differs: False reflects about the edges of the outer pixels,
            True about their centres. With True, an axis of one pixel has no width, and every theta reads
            that pixel.

    Returns:
        Theta, in the shape of ``matrix``; fp32 for 16 bits.

    Raises:
        TypeError: ``matrix`` holds no real numbers, or a size holds no ints.
        ValueError: ``matrix`` or ``size_out`` does not have the dimension of ``size_in``.

    Example:
        >>> import torch, stn_triton
        >>> image = torch.arange(12.0).reshape(1, 1, 3, 4)
        >>> one_pixel = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        >>> theta = stn_triton.transforms.from_pixels(one_pixel, (3, 4))
        >>> stn_triton.affine_grid_sample(image, theta[None])[0, 0].round()
        tensor([[ 1.,  2.,  3.,  0.],
                [ 5.,  6.,  7.,  0.],
                [ 9., 10., 11.,  0.]])
    """
    extents_in, extents_out = both_sizes(size_in, size_out)
    matrix = inputs.matrices("matrix", matrix, SHAPES[len(extents_in)])
    origin_in, origin_out = centres(extents_in), centres(extents_out)
    matrix = move_origins(matrix, [-c for c in origin_in], [-c for c in origin_out])
    return normalise(matrix, extents_in, extents_out, align_corners)


@tracing.overridable
def to_pixels(
    theta: Tensor, size_in: Sizes, size_out: Sizes | None = None, *, align_corners: bool = False
) -> Tensor:
    """Convert theta into a matrix from output to input pixels: the inverse of ``from_pixels``.

    Errors are those of ``from_pixels``.

    Args:
        theta: (..., 2, 3), (..., 3, 4), or (..., 3, 3) for homographies; floating.
        size_in: (H, W) or (D, H, W) of the input.
        size_out: (H, W) or (D, H, W) of the output. Default: ``size_in``.
        align_corners: the ``align_corners`` of the operator.

    Returns:
        The matrix, in the shape of ``theta``.

    Example:
        >>> from stn_triton import transforms
        >>> transforms.to_pixels(transforms.scale([0.5]), (8, 8))
        tensor([[0.5000, 0.0000, 1.7500],
                [0.0000, 0.5000, 1.7500]])
    """
    extents_in, extents_out = both_sizes(size_in, size_out)
    theta = inputs.matrices("theta", theta, SHAPES[len(extents_in)])
    matrix = denormalise(theta, extents_in, extents_out, align_corners)
    return move_origins(matrix, centres(extents_in), centres(extents_out))


def from_corner(matrix: Tensor) -> Tensor:
    """Move a matrix's zero from the corner of the first pixel to that pixel's centre."""
    half = [0.5] * (tracing.shape_of(matrix)[-1] - 1)
    return move_origins(matrix, [-h for h in half], [-h for h in half])


def to_corner(matrix: Tensor) -> Tensor:
    """Invert ``from_corner``."""
    half = [0.5] * (tracing.shape_of(matrix)[-1] - 1)
    return move_origins(matrix, half, half)


def reverse_axes(matrix: Tensor) -> Tensor:
    """Convert a matrix (..., D, D + 1) between the order of indices and that of (x, y[, z])."""
    return torch.cat((matrix[..., :-1].flip(-2, -1), matrix[..., -1:].flip(-2)), dim=-1)


def affine_only(theta: Tensor, size_in: Sizes) -> Tensor:
    """Check a theta for a library without homographies."""
    dim = len(inputs.sizes("size_in", size_in))
    return inputs.matrices("theta", theta, ((dim, dim + 1),))


def both_sizes(
    size_in: Sizes, size_out: Sizes | None, dims: tuple[int, ...] = (2, 3)
) -> tuple[list[int], list[int]]:
    """Check the sizes of input and output, and return them as (W, H[, D])."""
    extents_in = inputs.sizes("size_in", size_in, dims)
    if size_out is None:
        return extents_in, extents_in
    return extents_in, inputs.sizes("size_out", size_out, (len(extents_in),))


def centres(extents: list[int]) -> list[float]:
    """Centre of an image, in pixels from the centre of its first pixel."""
    return [(extent - 1) / 2 for extent in extents]


def of_sizes(numbers: list[float], like: Tensor) -> Tensor:
    """Numbers that come from sizes, in the dtype and on the device of a tensor."""
    return _numbers(numbers, like.device, like.dtype)


def normalise(matrix: Tensor, extents_in: list[int], extents_out: list[int], align_corners: bool) -> Tensor:
    """Convert a matrix from output to input pixels into theta; 0 is the centre of each image."""
    return matrix * _ratios(matrix, extents_in, extents_out, align_corners)


def denormalise(theta: Tensor, extents_in: list[int], extents_out: list[int], align_corners: bool) -> Tensor:
    """Invert ``normalise``."""
    return theta / _ratios(theta, extents_in, extents_out, align_corners)


def move_origins(matrix: Tensor, origin_in: list[float], origin_out: list[float]) -> Tensor:
    """Compute T(origin_in) M T(-origin_out): the origins are the new coordinates of the old zeros.

    Computed from M - I, so that the origins cancel exactly if M is the identity or a shift.
    """
    if not is_affine(matrix):  # may have any scale; the formula wants a linear part of about 1
        scale = matrix[..., :2, :2].detach().abs().amax((-2, -1), keepdim=True)
        scale = torch.where(scale > 0, scale, 1)
        return scale * _moved_origins(matrix / scale, origin_in, origin_out)
    return _moved_origins(matrix, origin_in, origin_out)


def _moved_origins(matrix: Tensor, origin_in: list[float], origin_out: list[float]) -> Tensor:
    rows, columns = tracing.shape_of(matrix)[-2:]
    dim = columns - 1
    below = [0.0] * (rows - dim)  # the last row of a homography stays
    after = of_sizes(origin_out, matrix)
    before = of_sizes([*origin_in, *below], matrix)
    difference = of_sizes([*[b - a for b, a in zip(origin_in, origin_out, strict=True)], *below], matrix)
    linear, shift = matrix[..., :dim], matrix[..., dim]
    identity = torch.eye(rows, dim, dtype=matrix.dtype, device=matrix.device)
    shift = shift - ((linear - identity) * after).sum(dim=-1, dtype=matrix.dtype)
    if not is_affine(matrix):
        linear = linear + before.unsqueeze(-1) * linear[..., -1:, :]
        shift = shift + before * (shift[..., -1:] - 1)
    return with_shift(linear, shift + difference)


def _ratios(matrix: Tensor, extents_in: list[int], extents_out: list[int], align_corners: bool) -> Tensor:
    """Factors between the entries of a matrix of pixels and those of theta, in the shape of one matrix."""
    inset = 1 if validation.corners(align_corners) else 0
    units_in, units_out = (
        [tracing.at_least(1, extent - inset) / 2 for extent in extents]
        for extents in (extents_in, extents_out)
    )
    rows = tracing.shape_of(matrix)[-2]
    # The last row and column are not in pixels.
    units_in, units_out = [*units_in, 1.0], [*units_out, 1.0]
    ratios = [out / unit for unit in units_in[:rows] for out in units_out]
    return of_sizes(ratios, matrix).view(rows, -1)
