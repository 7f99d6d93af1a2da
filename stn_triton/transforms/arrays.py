"""Converters of the matrices of libraries for arrays: OpenCV, scipy and DALI.

Whose they are, which way they map, and where they count from; the tests warp the same picture by each library
and by the operator. ``size_in``, ``size_out``, ``align_corners`` and the errors are those of ``from_pixels``;
``align_corners`` is what the operator of this package is called with, whatever the library is.
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
    """Theta of a matrix of ``cv2.warpAffine`` or ``cv2.warpPerspective``.

    Theirs map input to output pixels, or output to input with the flag ``WARP_INVERSE_MAP`` (opencv#11784).
    Version 4, and 5 for doubles, rounds positions to 1/32 of a pixel; this package does not. Its
    ``borderMode`` is here the padding: ``BORDER_CONSTANT`` zeros or fill, ``BORDER_REPLICATE`` border,
    ``BORDER_REFLECT`` reflection with ``align_corners=False``, ``BORDER_REFLECT_101`` reflection with True,
    ``BORDER_WRAP`` wrap.

    A homography's sign means nothing to OpenCV, and a last entry of 1 is not the right sign where pixel
    (0, 0) lies beyond the horizon. So theta has the sign under which more of the output shows the input; if
    neither shows it, the sign that the matrix has. Where both sides of the horizon are in view, OpenCV shows
    the input a second time beyond it; here that side is behind the camera and samples nothing. A sign that
    you know to be right is kept by ``from_pixels``, which takes the matrices of ``inverse_map=True``.

    Args:
        matrix: (..., 2, 3) or (..., 3, 3), a tensor or an array.
        size_in: (H, W) of the input; OpenCV's ``dsize`` is (width, height).
        size_out: the same of the output. Default: the input's.
        inverse_map: whether it was for the flag ``WARP_INVERSE_MAP``.
        align_corners: what the operator will be called with.

    Returns:
        theta, the shape of ``matrix``.

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
    """The matrix of theta for ``cv2.warpAffine`` or ``cv2.warpPerspective``; arguments as in ``from_cv2``.

    Returns:
        (..., 2, 3), or (..., 3, 3) for a homography; ``.numpy()`` of one of them is what OpenCV takes. The
        scale and the sign of a homography mean nothing there: divide it by its last entry to compare.
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
    """Theta of the ``matrix`` and ``offset`` of ``scipy.ndimage.affine_transform``.

    Theirs map output to input pixels, in the order of indices: (row, column) or (slice, row, column). Its
    ``mode`` is here the padding: ``"grid-constant"`` zeros or fill, ``"nearest"`` border, ``"reflect"``
    reflection with ``align_corners=False``, ``"mirror"`` reflection with True, ``"grid-wrap"`` wrap. Its
    default ``"constant"`` is none of them, for it does not interpolate between the image and the outside; nor
    is ``"wrap"``.

    Args:
        matrix: (..., D, D), (..., D, D + 1), or (..., D + 1, D + 1), whose last row is not looked at.
        size_in: (H, W) or (D, H, W) of the input.
        size_out: the same of the output, scipy's ``output_shape``. Default: the input's.
        offset: (..., D), for a ``matrix`` (..., D, D) alone. Default: zero.
        align_corners: what the operator will be called with.

    Returns:
        theta (..., D, D + 1).

    Example:
        >>> import numpy
        >>> from stn_triton import transforms
        >>> theta = transforms.from_scipy(numpy.diag([1.0, 0.5]), (4, 8), offset=[1.0, 0.0])
        >>> theta.tolist()  # x takes the second row of the matrix, y the first and so the shift
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
    """The matrix of theta for ``scipy.ndimage.affine_transform``; arguments as in ``from_scipy``.

    Returns:
        (..., D, D + 1), the offset in its last column, for affine theta only.
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
    """Theta of a matrix of NVIDIA DALI's ``fn.warp_affine``.

    Theirs map output to input pixels, or input to output with ``inverse_map=False``; positions (x, y[, z])
    are 0 at the corner of the first pixel (DALI#2648, #3527).

    Args:
        matrix: (..., 2, 3), or (..., 3, 4) for volumes.
        size_in: (H, W) or (D, H, W) of the input.
        size_out: the same of the output, DALI's ``size``. Default: the input's.
        inverse_map: as it was given to DALI, where True is the default.
        align_corners: what the operator will be called with.

    Returns:
        theta, the shape of ``matrix``.

    Example:
        >>> from stn_triton import transforms
        >>> twice = [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]  # twice as large, the upper left corner staying
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
    """The matrix of theta for NVIDIA DALI's ``fn.warp_affine``; arguments as in ``from_dali``.

    Returns:
        (..., 2, 3) or (..., 3, 4), for affine theta only.
    """
    theta = affine_only(theta, size_in)
    matrix = to_corner(to_pixels(theta, size_in, size_out, align_corners=align_corners))
    return matrix if validation.flag("inverse_map", inverse_map) else invert(matrix)
