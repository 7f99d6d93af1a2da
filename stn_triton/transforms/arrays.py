"""Converters of the matrices of libraries for arrays: OpenCV, scipy and DALI.

Sizes, ``align_corners`` and errors are those of ``from_pixels``.
"""

from __future__ import annotations

from torch import Tensor

from stn_triton import tracing, validation
from stn_triton.transforms import inputs
from stn_triton.transforms.algebra import invert, with_shift
from stn_triton.transforms.builders import Numbers
from stn_triton.transforms.horizon import seen_from_pixels
from stn_triton.transforms.inputs import Sizes
from stn_triton.transforms.pixels import (
    SHAPES,
    affine_only,
    both_sizes,
    from_corner,
    from_pixels,
    reverse_axes,
    to_corner,
    to_pixels,
)


@tracing.overridable
def from_cv2(
    matrix: Numbers,
    size_in: Sizes,
    size_out: Sizes | None = None,
    *,
    inverse_map: bool = False,
    align_corners: bool = False,
) -> Tensor:
    """Convert a matrix of ``cv2.warpAffine`` or ``cv2.warpPerspective`` into theta.

    OpenCV's matrices map input to output pixels, or output to input with the flag ``WARP_INVERSE_MAP``
    (opencv#11784). OpenCV 4, and 5 for doubles, rounds positions to 1/32 of a pixel; this package does not.
    The padding for each ``borderMode``: ``BORDER_CONSTANT`` zeros or fill, ``BORDER_REPLICATE`` border,
    ``BORDER_REFLECT`` reflection with ``align_corners=False``, ``BORDER_REFLECT_101`` reflection with True,
    ``BORDER_WRAP`` wrap.

    A homography's sign means nothing to OpenCV, and a last entry of 1 is the wrong sign if pixel (0, 0) lies
    beyond the horizon. So theta gets the sign under which more of the output shows the input; if neither
    shows it, the sign of the matrix. Where both sides of the horizon are in view, OpenCV shows the input a
    second time beyond it; here that side is behind the camera and samples nothing. To keep a sign that you
    know to be right, use ``from_pixels``, which takes the matrices of ``inverse_map=True``.

    Args:
        matrix: (..., 2, 3) or (..., 3, 3), a tensor or an array.
        size_in: (H, W) of the input; OpenCV's ``dsize`` is (width, height).
        size_out: (H, W) of the output. Default: ``size_in``.
        inverse_map: whether the matrix is for the flag ``WARP_INVERSE_MAP``.
        align_corners: the ``align_corners`` of the operator.

    Returns:
        Theta, in the shape of ``matrix``.

    Example:
        >>> import numpy, torch, stn_triton
        >>> right = numpy.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])  # moves the picture by one pixel
        >>> theta = stn_triton.transforms.from_cv2(right, (1, 4))
        >>> image = numpy.array([[[[1.0, 2.0, 3.0, 4.0]]]])
        >>> stn_triton.affine_grid_sample(torch.from_numpy(image), theta[None])
        tensor([[[[0., 1., 2., 3.]]]], dtype=torch.float64)
    """
    both_sizes(size_in, size_out, (2,))
    matrix = inputs.matrices("matrix", matrix, SHAPES[2])
    if not validation.flag("inverse_map", inverse_map):
        matrix = invert(matrix)
    return seen_from_pixels(matrix, size_in, size_out, align_corners=align_corners)


@tracing.overridable
def to_cv2(
    theta: Tensor,
    size_in: Sizes,
    size_out: Sizes | None = None,
    *,
    inverse_map: bool = False,
    align_corners: bool = False,
) -> Tensor:
    """Convert theta into a matrix for ``cv2.warpAffine`` or ``cv2.warpPerspective``; see ``from_cv2``.

    Returns:
        (..., 2, 3), or (..., 3, 3) for a homography; OpenCV takes ``.numpy()`` of a single one. OpenCV
        ignores the scale and sign of a homography: to compare two of them, divide by the last entry.
    """
    both_sizes(size_in, size_out, (2,))
    matrix = to_pixels(theta, size_in, size_out, align_corners=align_corners)
    return matrix if validation.flag("inverse_map", inverse_map) else invert(matrix)


@tracing.overridable
def from_scipy(
    matrix: Numbers,
    size_in: Sizes,
    size_out: Sizes | None = None,
    *,
    offset: Numbers | None = None,
    align_corners: bool = False,
) -> Tensor:
    """Convert the ``matrix`` and ``offset`` of ``scipy.ndimage.affine_transform`` into theta.

    scipy's matrices map output to input pixels, in the order of indices: (row, column) or (slice, row,
    column). The padding for each ``mode``: ``"grid-constant"`` zeros or fill, ``"nearest"`` border,
    ``"reflect"`` reflection with ``align_corners=False``, ``"mirror"`` reflection with True,
    ``"grid-wrap"`` wrap. The default ``"constant"``, which does not interpolate between the image and the
    outside, and ``"wrap"`` have no equivalent.

    Args:
        matrix: (..., D, D), (..., D, D + 1), or (..., D + 1, D + 1), whose last row is ignored.
        size_in: (H, W) or (D, H, W) of the input.
        size_out: (H, W) or (D, H, W) of the output, scipy's ``output_shape``. Default: ``size_in``.
        offset: (..., D), only for a ``matrix`` (..., D, D). Default: zero.
        align_corners: the ``align_corners`` of the operator.

    Returns:
        Theta (..., D, D + 1).

    Example:
        >>> import numpy
        >>> from stn_triton import transforms
        >>> theta = transforms.from_scipy(numpy.diag([1.0, 0.5]), (4, 8), offset=[1.0, 0.0])
        >>> theta.tolist()  # the rows of the matrix in reverse order: x, then y with its shift
        [[0.5, 0.0, -0.4375], [0.0, 1.0, 0.5]]
    """
    dim = len(both_sizes(size_in, size_out)[0])
    matrix = inputs.matrices("matrix", matrix, ((dim, dim), (dim, dim + 1), (dim + 1, dim + 1)))
    if tracing.shape_of(matrix)[-1] == dim:
        offset = inputs.tensor("offset", (0.0,) * dim if offset is None else offset, matrix)
        offset = inputs.vectors("offset", offset, (dim,), f"(..., {dim})")
        matrix = with_shift(matrix, offset)
    elif offset is not None:
        shape = tuple(matrix.shape)
        raise ValueError(f"offset must be None for a matrix of shape {shape}, {validation.got(offset)}")
    return from_pixels(reverse_axes(matrix[..., :dim, :]), size_in, size_out, align_corners=align_corners)


@tracing.overridable
def to_scipy(
    theta: Tensor, size_in: Sizes, size_out: Sizes | None = None, *, align_corners: bool = False
) -> Tensor:
    """Convert an affine theta into a matrix for ``scipy.ndimage.affine_transform``; see ``from_scipy``.

    Returns:
        (..., D, D + 1), with the offset in its last column.
    """
    return reverse_axes(
        to_pixels(affine_only(theta, size_in), size_in, size_out, align_corners=align_corners)
    )


@tracing.overridable
def from_dali(
    matrix: Numbers,
    size_in: Sizes,
    size_out: Sizes | None = None,
    *,
    inverse_map: bool = True,
    align_corners: bool = False,
) -> Tensor:
    """Convert a matrix of NVIDIA DALI's ``fn.warp_affine`` into theta.

    DALI's matrices map output to input pixels, or input to output with ``inverse_map=False``. Positions
    (x, y[, z]) are 0 at the corner of the first pixel (DALI#2648, #3527).

    Args:
        matrix: (..., 2, 3), or (..., 3, 4) for volumes.
        size_in: (H, W) or (D, H, W) of the input.
        size_out: (H, W) or (D, H, W) of the output, DALI's ``size``. Default: ``size_in``.
        inverse_map: DALI's argument of this name; True is its default too.
        align_corners: the ``align_corners`` of the operator.

    Returns:
        Theta, in the shape of ``matrix``.

    Example:
        >>> from stn_triton import transforms
        >>> twice = [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]  # enlarges, and keeps the upper left corner in place
        >>> transforms.from_dali(twice, (8, 8), (16, 16))
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    dim = len(both_sizes(size_in, size_out)[0])
    matrix = inputs.matrices("matrix", matrix, ((dim, dim + 1),))
    if not validation.flag("inverse_map", inverse_map):
        matrix = invert(matrix)
    return from_pixels(from_corner(matrix), size_in, size_out, align_corners=align_corners)


@tracing.overridable
def to_dali(
    theta: Tensor,
    size_in: Sizes,
    size_out: Sizes | None = None,
    *,
    inverse_map: bool = True,
    align_corners: bool = False,
) -> Tensor:
    """Convert an affine theta into a matrix for NVIDIA DALI's ``fn.warp_affine``; see ``from_dali``.

    Returns:
        (..., 2, 3) or (..., 3, 4).
    """
    theta = affine_only(theta, size_in)
    matrix = to_corner(to_pixels(theta, size_in, size_out, align_corners=align_corners))
    return matrix if validation.flag("inverse_map", inverse_map) else invert(matrix)
