"""Converters of the matrices of libraries for tensors: kornia, torchvision and MONAI.

Whose they are, which way they map, and where they count from; the tests warp the same picture by each library
and by the operator. ``size_in``, ``size_out``, ``align_corners`` and the errors are those of ``from_pixels``;
``align_corners`` is what the operator of this package is called with, whatever the library is.
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
    """Theta of a matrix of kornia's ``warp_affine``, ``warp_perspective`` or ``warp_affine3d``.

    Theirs map input to output pixels (kornia#747, #1651). With ``align_corners=False`` ``warp_affine3d``, and
    before kornia 0.9 the others, normalise as if it were True, which shifts and scales a little; to get that,
    convert with ``align_corners=True`` and call the operator with False. A homography's sign means nothing
    there; theta has the one that ``from_cv2`` describes.

    Args:
        matrix: (..., 2, 3), (..., 3, 3), or (..., 3, 4) for volumes.
        size_in: (H, W) or (D, H, W) of the input.
        size_out: the same of the output, kornia's ``dsize``. Default: the input's.
        align_corners: what the operator will be called with.

    Returns:
        theta, the shape of ``matrix``.

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
    """The matrix of theta for kornia's ``warp_*`` functions; arguments as in ``from_kornia``.

    Returns:
        The shape of ``theta``.
    """
    return invert(to_pixels(theta, size_in, size_out, align_corners=align_corners))


@tracing.overridable
def from_torchvision(
    coefficients: Numbers, size_in: Sizes, size_out: Sizes | None = None, *, align_corners: bool = False
) -> Tensor:
    """Theta of the ``coefficients`` of ``torchvision.transforms.v2.functional.perspective``.

    They are those of Pillow's ``Image.transform``: rows of a matrix from output to input pixels without its
    last entry, which is 1. Positions are 0 at the corner of the first pixel. A homography's sign means
    nothing there, and 1 is not the right one where that corner of the output lies beyond the horizon; theta
    has the one that ``from_cv2`` describes.

    On tensors with a fill value, torchvision weighs the picture twice in the pixels of its edge: where a
    share m of a pixel is the picture v, it shows m^2 v + (1 - m) fill, and here it is m v + (1 - m) fill.

    Args:
        coefficients: (..., 8).
        size_in: (H, W) of the input.
        size_out: the same of the output, which Pillow can change. Default: the input's.
        align_corners: what the operator will be called with.

    Returns:
        theta (..., 3, 3).

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
    """The ``coefficients`` of theta for ``perspective``; arguments as in ``from_torchvision``.

    Returns:
        (..., 8), of an affine theta too. The scale and the sign of a homography are lost in them. If its
        horizon goes through the corner of the output there are no coefficients: they are infinite.
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
    """Theta of the parameters of ``torchvision.transforms.v2.functional.affine``, batched and differentiable.

    There the parameters are numbers and serve the whole batch (vision#8484, #2929). What
    ``RandomAffine.make_params`` returns can be given as keywords. There is no way back: not every theta has
    such parameters; ``to_torchvision`` serves every theta.

    Args:
        size_in: (H, W) of the images; the output has the same size.
        angle: (...) degrees; positive turns the picture clockwise, as seen.
        translate: (..., 2) pixels (x, y) by which the picture moves.
        scale: (...); above 1 enlarges the picture.
        shear: (..., 2) degrees (x, y).
        center: (..., 2) pixels (x, y) from the corner of the first pixel, about which to turn. Default: the
            centre.
        align_corners: what the operator will be called with.

    Returns:
        theta (..., 2, 3), leading dimensions broadcast. Numbers follow tensors in dtype and device.

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
    """Theta of a matrix of MONAI's ``AffineTransform`` layer or, ``zero_centered``, ``Affine`` transform.

    Theirs map output to input pixels, in the order of indices, as scipy's do. The first counts from the first
    pixel, with either ``align_corners`` since MONAI#8690 (before, with its default True it was off by up to
    half a pixel); the second from the centres of the images, with its default ``align_corners=False``.
    MONAI's ``zero_centered=True`` in the first and ``align_corners=True`` in the second count in other units
    than pixels: there 1 moves a picture of 8 pixels by 7 / 8 or 8 / 7 of one.

    Args:
        matrix: (..., D, D + 1), or (..., D + 1, D + 1), whose last row is not looked at.
        size_in: (H, W) or (D, H, W) of the input.
        size_out: the same of the output, MONAI's ``spatial_size``. Default: the input's.
        zero_centered: whether positions are 0 at the centres of the images.
        align_corners: what the operator will be called with.

    Returns:
        theta (..., D, D + 1).

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
    """The matrix of theta for MONAI; arguments as in ``from_monai``.

    Returns:
        (..., D + 1, D + 1), for affine theta only.
    """
    extents = both_sizes(size_in, size_out)
    theta = affine_only(theta, size_in)
    if validation.flag("zero_centered", zero_centered):
        matrix = denormalise(theta, *extents, align_corners)
    else:
        matrix = to_pixels(theta, size_in, size_out, align_corners=align_corners)
    return homogeneous(reverse_axes(matrix))
