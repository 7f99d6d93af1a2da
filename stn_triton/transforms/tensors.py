"""Converters of the matrices of libraries for tensors: kornia, torchvision and MONAI.

Sizes, ``align_corners`` and errors are those of ``from_pixels``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stn_triton import tracing, validation
from stn_triton.transforms import inputs
from stn_triton.transforms.algebra import homogeneous, invert, with_shift
from stn_triton.transforms.builders import Numbers
from stn_triton.transforms.horizon import seen_from_pixels
from stn_triton.transforms.inputs import Sizes
from stn_triton.transforms.pixels import (
    SHAPES,
    affine_only,
    both_sizes,
    denormalise,
    from_corner,
    from_pixels,
    normalise,
    of_sizes,
    reverse_axes,
    to_corner,
    to_pixels,
)


@tracing.overridable
def from_kornia(
    matrix: Numbers, size_in: Sizes, size_out: Sizes | None = None, *, align_corners: bool = False
) -> Tensor:
    """Convert a matrix of kornia's ``warp_affine``, ``warp_perspective`` or ``warp_affine3d`` into theta.

    kornia's matrices map input to output pixels (kornia#747, #1651). With ``align_corners=False``,
    ``warp_affine3d`` (before kornia 0.9 the others too) normalises as with True, which shifts and scales the
    picture a little. To get the same, convert with ``align_corners=True`` and call the operator with False.
    A homography's sign means nothing to kornia; theta gets a sign as in ``from_cv2``.

    Args:
        matrix: (..., 2, 3), (..., 3, 3), or (..., 3, 4) for volumes.
        size_in: (H, W) or (D, H, W) of the input.
        size_out: (H, W) or (D, H, W) of the output, kornia's ``dsize``. Default: ``size_in``.
        align_corners: the ``align_corners`` of the operator.

    Returns:
        Theta, in the shape of ``matrix``.

    Example:
        >>> from stn_triton import transforms
        >>> one_pixel_right = [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
        >>> transforms.from_kornia(one_pixel_right, (4, 8))
        tensor([[ 1.0000, -0.0000, -0.2500],
                [-0.0000,  1.0000,  0.0000]])
    """
    dim = len(both_sizes(size_in, size_out)[0])
    matrix = invert(inputs.matrices("matrix", matrix, SHAPES[dim]))
    return seen_from_pixels(matrix, size_in, size_out, align_corners=align_corners)


@tracing.overridable
def to_kornia(
    theta: Tensor, size_in: Sizes, size_out: Sizes | None = None, *, align_corners: bool = False
) -> Tensor:
    """Convert theta into a matrix for kornia's ``warp_*`` functions; see ``from_kornia``.

    Returns:
        The matrix, in the shape of ``theta``.
    """
    return invert(to_pixels(theta, size_in, size_out, align_corners=align_corners))


@tracing.overridable
def from_torchvision(
    coefficients: Numbers, size_in: Sizes, size_out: Sizes | None = None, *, align_corners: bool = False
) -> Tensor:
    """Convert the ``coefficients`` of ``torchvision.transforms.v2.functional.perspective`` into theta.

    Pillow's ``Image.transform`` takes the same: the rows of a matrix from output to input pixels without its
    last entry, which is 1. Positions are 0 at the corner of the first pixel. If that corner of the output is
    beyond the horizon, 1 has the wrong sign; so theta gets a sign as in ``from_cv2``.

    On tensors with a fill value, torchvision weights edge pixels twice. Where a share m of a pixel is the
    picture v, torchvision shows m^2 v + (1 - m) fill, and this package m v + (1 - m) fill.

    Args:
        coefficients: (..., 8).
        size_in: (H, W) of the input.
        size_out: (H, W) of the output, which only Pillow can change. Default: ``size_in``.
        align_corners: the ``align_corners`` of the operator.

    Returns:
        Theta (..., 3, 3).

    Example:
        >>> from stn_triton import transforms
        >>> transforms.from_torchvision([1.0, 0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0], (4, 8))
        tensor([[ 1.0000,  0.0000, -0.2500],
                [ 0.0000,  1.0000,  0.0000],
                [ 0.0000,  0.0000,  1.0000]])
    """
    both_sizes(size_in, size_out, (2,))
    coefficients = inputs.vectors("coefficients", coefficients, (8,), "(..., 8)")
    last = tracing.zeros_like(coefficients[..., :1]) + 1
    matrix = torch.cat((coefficients, last), dim=-1).unflatten(-1, (3, 3))
    return seen_from_pixels(from_corner(matrix), size_in, size_out, align_corners=align_corners)


@tracing.overridable
def to_torchvision(
    theta: Tensor, size_in: Sizes, size_out: Sizes | None = None, *, align_corners: bool = False
) -> Tensor:
    """Convert theta into ``coefficients`` for torchvision's ``perspective``; see ``from_torchvision``.

    Returns:
        (..., 8), also for an affine theta. They lose the scale and the sign of a homography, and are infinite
        if its horizon goes through the corner of the output.
    """
    both_sizes(size_in, size_out, (2,))
    matrix = to_corner(to_pixels(theta, size_in, size_out, align_corners=align_corners))
    matrix = homogeneous(matrix).flatten(-2)
    return matrix[..., :8] / matrix[..., 8:]


@tracing.overridable
def from_torchvision_affine(
    size_in: Sizes,
    *,
    angle: Numbers = 0.0,
    translate: Numbers = (0.0, 0.0),
    scale: Numbers = 1.0,
    shear: Numbers = (0.0, 0.0),
    center: Numbers | None = None,
    align_corners: bool = False,
) -> Tensor:
    """Convert the parameters of ``torchvision.transforms.v2.functional.affine`` into theta.

    Each image can have its own parameters, and theta is differentiable; torchvision takes numbers for the
    whole batch (vision#8484, #2929). The result of ``RandomAffine.make_params`` can be given as keywords.
    There is no inverse, because not every theta has such parameters; ``to_torchvision`` takes every theta.

    Args:
        size_in: (H, W) of the images; the output has the same size.
        angle: (...) degrees; positive turns the picture clockwise, as seen.
        translate: (..., 2) pixels (x, y) by which the picture moves.
        scale: (...); above 1 enlarges the picture.
        shear: (..., 2) degrees (x, y).
        center: (..., 2) centre of rotation, pixels (x, y) from the corner of the first pixel. Default: the
            image's centre.
        align_corners: the ``align_corners`` of the operator.

    Returns:
        Theta (..., 2, 3), leading dimensions broadcast, in the dtype and on the device of the tensors.

    Example:
        >>> import torch, stn_triton
        >>> angles = torch.tensor([0.0, 90.0])
        >>> theta = stn_triton.transforms.from_torchvision_affine((2, 2), angle=angles)
        >>> images = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]).expand(2, 1, 2, 2)
        >>> stn_triton.affine_grid_sample(images, theta)[:, 0].round()
        tensor([[[1., 2.],
                 [3., 4.]],
        <BLANKLINE>
                [[3., 1.],
                 [4., 2.]]])
    """
    extents = inputs.sizes("size_in", size_in, (2,))
    given = {"angle": angle, "translate": translate, "scale": scale, "shear": shear, "center": center}
    like = next((value for value in given.values() if isinstance(value, Tensor)), None)
    angle, scale = inputs.tensor("angle", angle, like), inputs.tensor("scale", scale, like)
    translate, shear = (
        inputs.vectors(name, given[name], (2,), "(..., 2)", like) for name in ("translate", "shear")
    )
    turn, (slant_x, slant_y) = angle * (math.pi / 180), (shear * (math.pi / 180)).unbind(-1)
    # Rotation, shear along y, shear along x, from input to output about the centre.
    a, c = (turn - slant_y).cos() / slant_y.cos(), (turn - slant_y).sin() / slant_y.cos()
    b, d = -(a * slant_x.tan() + turn.sin()), turn.cos() - c * slant_x.tan()
    linear = torch.stack((a, b, c, d), dim=-1) * scale.unsqueeze(-1)
    linear = linear.unflatten(-1, (2, 2))
    shift = translate
    if center is not None:
        center = inputs.vectors("center", center, (2,), "(..., 2)", like)
        center = center - of_sizes([extent / 2 for extent in extents], center)
        shift = shift + center - (linear * center.unsqueeze(-2)).sum(dim=-1, dtype=linear.dtype)
    return normalise(invert(with_shift(linear, shift)), extents, extents, align_corners)


@tracing.overridable
def from_monai(
    matrix: Numbers,
    size_in: Sizes,
    size_out: Sizes | None = None,
    *,
    zero_centered: bool = False,
    align_corners: bool = False,
) -> Tensor:
    """Convert a matrix of MONAI's layer ``AffineTransform`` or its transform ``Affine`` into theta.

    MONAI's matrices map output to input pixels, in the order of indices, like scipy's. For
    ``AffineTransform`` positions are 0 at the first pixel's centre, with either ``align_corners`` since
    MONAI#8690 (earlier versions, with their default True, are off by up to half a pixel). For ``Affine``
    with its default ``align_corners=False``, positions are 0 at the images' centres: use ``zero_centered``.
    ``AffineTransform`` with MONAI's ``zero_centered=True``, and ``Affine`` with ``align_corners=True``, use
    other units than pixels: there 1 moves a picture of 8 pixels by 7 / 8 or 8 / 7 of one.

    Args:
        matrix: (..., D, D + 1), or (..., D + 1, D + 1), whose last row is ignored.
        size_in: (H, W) or (D, H, W) of the input.
        size_out: (H, W) or (D, H, W) of the output, MONAI's ``spatial_size``. Default: ``size_in``.
        zero_centered: whether positions are 0 at the centres of the images.
        align_corners: the ``align_corners`` of the operator.

    Returns:
        Theta (..., D, D + 1).

    Example:
        >>> from stn_triton import transforms
        >>> transforms.from_monai([[1.0, 0.0, 1.0], [0.0, 0.5, 0.0]], (4, 8), zero_centered=True)
        tensor([[0.5000, 0.0000, 0.0000],
                [0.0000, 1.0000, 0.5000]])
    """
    extents = both_sizes(size_in, size_out)
    dim = len(extents[0])
    matrix = inputs.matrices("matrix", matrix, ((dim, dim + 1), (dim + 1, dim + 1)))
    matrix = reverse_axes(matrix[..., :dim, :])
    if validation.flag("zero_centered", zero_centered):
        return normalise(matrix, *extents, align_corners)
    return from_pixels(matrix, size_in, size_out, align_corners=align_corners)


@tracing.overridable
def to_monai(
    theta: Tensor,
    size_in: Sizes,
    size_out: Sizes | None = None,
    *,
    zero_centered: bool = False,
    align_corners: bool = False,
) -> Tensor:
    """Convert an affine theta into a matrix for MONAI; arguments as in ``from_monai``.

    Returns:
        (..., D + 1, D + 1).
    """
    extents = both_sizes(size_in, size_out)
    theta = affine_only(theta, size_in)
    if validation.flag("zero_centered", zero_centered):
        matrix = denormalise(theta, *extents, align_corners)
    else:
        matrix = to_pixels(theta, size_in, size_out, align_corners=align_corners)
    return homogeneous(reverse_axes(matrix))
