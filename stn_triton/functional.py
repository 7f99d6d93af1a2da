"""The public functions: check every argument, then make one operator call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stn_triton import derivatives, limits, tracing
from stn_triton.fill_values import fill_values
from stn_triton.options import MODES, PADDING_MODES, Options
from stn_triton.validation import (
    choice,
    control_points,
    corners,
    flag,
    floating,
    images,
    maps,
    output_size,
    sampled_dtype,
)


@tracing.overridable
def affine_grid_sample(
    input: Tensor,
    theta: Tensor,
    size: int | Sequence[int] | None = None,
    *,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = False,
    fill_value: float | Sequence[float] | Tensor | None = None,
    image_index: Tensor | None = None,
    antialias: bool = False,
) -> Tensor:
    """Warp images by affine matrices: ``F.grid_sample(input, F.affine_grid(theta, ...))`` in one pass.

    The grid generator and the sampler of a spatial transformer (Jaderberg et al. 2015, sections 3.2 and 3.3)
    as one operator, which never stores a grid. Conventions are PyTorch's. On a GPU the identity and shifts
    by whole pixels are exact. The gradient of ``theta`` has the same bits every time. So has the gradient of
    ``input``, except for volumes, under ``"reflection"`` or ``"wrap"``, and in second derivatives: there a
    GPU sums in fp32 by atomic additions, whose order varies. Under
    ``torch.use_deterministic_algorithms(True)`` a GPU sums whole numbers, with the same bits every time.

    Args:
        input: images (N, C, H_in, W_in) or volumes (N, C, D_in, H_in, W_in), with any strides. Floating
            dtypes: fp16, bf16, fp32, fp64. uint8 has no gradients; its results are rounded, half to even,
            and clamped to 0 to 255. bool, int8, int16, int32 and int64 are labels: they have no gradients
            and need ``mode="nearest"``, which copies them exactly.
        theta: matrices (N, 2, 3), for volumes (N, 3, 4), of any floating dtype. A matrix maps an output
            position (x, y, 1) to an input position (x, y), both normalised: -1 and 1 are the edges of the
            image. (1, 2, 3) is one matrix for all images; (N, K, 2, 3) warps each image K times;
            (M, 2, 3) warps a single image M times, or any images with ``image_index``. No image is copied.
        size: output size in pixels, (H_out, W_out) or (D_out, H_out, W_out), or one int for all axes, as in
            ``F.interpolate``. Default: the size of ``input``.
        mode: interpolation: ``"bilinear"`` (trilinear for volumes), ``"nearest"`` (halfway between two
            pixels, the even one; no gradient for theta) or ``"bicubic"`` (images only; A = -0.75).
        padding_mode: values outside the image: ``"zeros"``; ``"border"``, the nearest pixel;
            ``"reflection"``, the mirrored image; ``"fill"``, ``fill_value``; ``"wrap"``, the image repeated:
            the pixel after the last is the first, for both values of ``align_corners`` (``"grid-wrap"`` of
            ``scipy.ndimage``).
        align_corners: whether -1 and 1 mean the centres of the corner pixels (True) or their outer edges
            (False), as in ``F.grid_sample``. None means False.
        fill_value: value outside the image, only for ``padding_mode="fill"``: a number, a sequence of C
            numbers, or a floating or integer tensor (C,) or () on the device of ``input``, which gets a
            gradient if it requires one. For labels: ints, or a tensor of the dtype of ``input``.
        image_index: int64 (M,): output m is image ``image_index[m]``, warped by matrix m or by the only
            matrix. Indices may have any order and repeat. An index out of range raises on a CPU; on a GPU,
            where a check would stall, the output is NaN (0 for integers), without gradients.
        antialias: average several samples per output pixel where a map shrinks. The number of samples along
            an output axis is the length of an output step in input pixels, rounded up, at most 64. (A length
            that exceeds a whole number by at most 1/64 of itself is rounded down.) The result is that of
            sampling at so many times ``size`` and averaging; so is the time, but not the memory. Nothing
            changes where a map does not shrink. Prefer ``align_corners=False``: with True, averaging pulls
            the edges of the picture in by up to half an output pixel.

    Returns:
        (N, C, H_out, W_out), (N, K, C, H_out, W_out) or (M, C, H_out, W_out), for volumes with D_out before
        H_out. Dtype and memory format (contiguous or channels_last) are those of ``input``. Coordinates are
        computed in fp32, or in fp64 for an fp64 ``input``, under autocast too. A coordinate that is not
        finite samples the outside under zeros and fill, with zero gradients, and the first pixel under wrap;
        under border and reflection NaN samples the first edge.
        The result is differentiable twice with respect to ``input``, ``theta`` and ``fill_value``, in
        reverse and in forward mode, but not twice in forward mode.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value.
        RuntimeError: a CUDA graph is being captured, and no earlier call had the same ``fill_value`` numbers.
        NotImplementedError: a third derivative, a second one in forward mode alone, or forward mode under
            ``torch.compile``.

    Example:
        >>> import math, torch, stn_triton
        >>> images = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> a = math.pi / 2
        >>> quarter_turn = torch.tensor([[[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]]])
        >>> stn_triton.affine_grid_sample(images, quarter_turn).round().int()[0, 0]
        tensor([[ 3,  7, 11, 15],
                [ 2,  6, 10, 14],
                [ 1,  5,  9, 13],
                [ 0,  4,  8, 12]], dtype=torch.int32)

        Two crops of one image, in one call:

        >>> crops = torch.tensor([[[0.5, 0, -0.5], [0, 0.5, -0.5]], [[0.5, 0, 0.5], [0, 0.5, 0.5]]])
        >>> stn_triton.affine_grid_sample(images, crops[None], size=2)[0, :, 0].int()
        tensor([[[ 0,  1],
                 [ 4,  5]],
        <BLANKLINE>
                [[10, 11],
                 [14, 15]]], dtype=torch.int32)
    """
    options = Options(mode, padding_mode, corners(align_corners), flag("antialias", antialias))
    return _sample("affine", input, theta, size, None, fill_value, image_index, options)


@tracing.overridable
def perspective_grid_sample(
    input: Tensor,
    theta: Tensor,
    size: int | Sequence[int] | None = None,
    *,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = False,
    fill_value: float | Sequence[float] | Tensor | None = None,
    image_index: Tensor | None = None,
) -> Tensor:
    """Warp images by projective matrices (homographies), in one pass; see ``affine_grid_sample``.

    A matrix maps an output position (x, y, 1) to (X, Y, Z), and the input is sampled at (X/Z, Y/Z), both
    normalised (the 8-parameter transformation of Jaderberg et al. 2015, section 4.1). With the last row
    (0, 0, 1) the map is affine. On a GPU the gradient of ``input`` is summed by atomic additions under every
    padding, as in ``affine_grid_sample`` under ``"wrap"``.

    Args:
        input: images (N, C, H_in, W_in).
        theta: matrices (N, 3, 3); or (1, 3, 3), (N, K, 3, 3), (M, 3, 3) as in ``affine_grid_sample``.
            The sign of a matrix matters: a point is seen where Z > 0. Where Z <= 0 it lies behind the
            horizon: the output is ``fill_value`` under ``"fill"``, else 0, with zero gradients.
        size: as in ``affine_grid_sample``.
        mode: as in ``affine_grid_sample``.
        padding_mode: as in ``affine_grid_sample``.
        align_corners: as in ``affine_grid_sample``.
        fill_value: as in ``affine_grid_sample``.
        image_index: as in ``affine_grid_sample``.

    Returns:
        The warped images, see ``affine_grid_sample``.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value.
        RuntimeError: a CUDA graph is being captured, and no earlier call had the same ``fill_value`` numbers.
        NotImplementedError: a third derivative, a second one in forward mode alone, or forward mode under
            ``torch.compile``.

    Example:
        >>> import torch, stn_triton
        >>> images = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> tilt = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.8, 1.0]]])
        >>> stn_triton.perspective_grid_sample(images, tilt, mode="nearest").int()[0, 0]
        tensor([[ 0,  0,  0,  0],
                [ 4,  5,  6,  7],
                [ 8,  9, 10, 11],
                [ 9,  9, 10, 10]], dtype=torch.int32)
    """
    options = Options(mode, padding_mode, corners(align_corners))
    return _sample("projective", input, theta, size, None, fill_value, image_index, options)


@tracing.overridable
def thin_plate_spline_grid_sample(
    input: Tensor,
    offsets: Tensor,
    size: int | Sequence[int] | None = None,
    *,
    points: Sequence[int] | Sequence[Sequence[float]] | None = None,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = False,
    fill_value: float | Sequence[float] | Tensor | None = None,
    image_index: Tensor | None = None,
) -> Tensor:
    """Warp images by thin plate splines through control points, in one pass; see ``affine_grid_sample``.

    The output at control point i samples the input at that point plus ``offsets[:, i]``. Between the points
    the map bends as little as possible (Bookstein 1989; Jaderberg et al. 2015 use 16 points in section 4.1).
    Offsets of zero are exactly the identity. No grid is stored, forward or backward. On a GPU the gradient of
    ``input`` is summed in fp32 by atomic additions, whose order varies; under
    ``torch.use_deterministic_algorithms(True)`` in whole numbers, with the same bits every time. All other
    gradients always have the same bits.

    Args:
        input: images (N, C, H_in, W_in).
        offsets: (N, P, 2), any floating dtype: how far each of P control points moves, (x, y) in normalised
            coordinates of the input. (1, P, 2), (N, K, P, 2) and (M, P, 2) are as for theta in
            ``affine_grid_sample``.
        size: as in ``affine_grid_sample``.
        points: control points in normalised coordinates of the output. Either two ints (rows, columns), a
            regular grid over [-1, 1] x [-1, 1] of at least 2 x 2 points, in the order row by row, x fastest;
            or P pairs of numbers (x, y), at least three, all apart and not all on one line. A distance d of
            1e-4 is enough; errors of positions in fp32 are about 1e-8 / d. Default: a regular grid with as
            many rows as columns, for which P must be a square number.
        mode: as in ``affine_grid_sample``.
        padding_mode: as in ``affine_grid_sample``.
        align_corners: as in ``affine_grid_sample``.
        fill_value: as in ``affine_grid_sample``.
        image_index: as in ``affine_grid_sample``.

    Returns:
        The warped images, see ``affine_grid_sample``; ``offsets`` take the place of theta.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value.
        RuntimeError: a CUDA graph is being captured, and no earlier call had the same ``points`` and
            ``fill_value`` numbers.
        NotImplementedError: a third derivative, a second one in forward mode alone, or forward mode under
            ``torch.compile``.

    Example:
        >>> import torch, stn_triton
        >>> images = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> offsets = torch.zeros(1, 9, 2)
        >>> offsets[:, 4] = torch.tensor([0.5, 0.0])  # the middle of 3 x 3 points sees one pixel to the right
        >>> stn_triton.thin_plate_spline_grid_sample(images, offsets, padding_mode="border").round(decimals=1)
        tensor([[[[ 0.1000,  1.3000,  2.3000,  3.0000],
                  [ 4.3000,  5.7000,  6.7000,  7.0000],
                  [ 8.3000,  9.7000, 10.7000, 11.0000],
                  [12.1000, 13.3000, 14.3000, 15.0000]]]])
    """
    options = Options(mode, padding_mode, corners(align_corners))
    return _sample("spline", input, offsets, size, points, fill_value, image_index, options)


def _sample(
    kind: str,
    input: Tensor,
    theta: Tensor,
    size: int | Sequence[int] | None,
    points: Sequence[int] | Sequence[Sequence[float]] | None,
    fill_value: float | Sequence[float] | Tensor | None,
    image_index: Tensor | None,
    options: Options,
) -> Tensor:
    """Check all arguments, give theta one matrix per output, and call the operator."""
    is_recording = tracing.is_recording()
    if is_recording:
        arguments = (kind, input, theta, size, points, fill_value, image_index, options)
        extents, fill, options = tracing.untraced(_checked, *arguments)
        extents = list(input.shape[2:]) if size is None else tracing.recorded_size(size, extents)
    else:
        extents, fill, options = _checked(kind, input, theta, size, points, fill_value, image_index, options)
    if fill is not None:
        fill = fill.expand(input.shape[1])
    n = input.shape[0]
    if theta.ndim == 4:
        k = theta.shape[1]
        theta = theta.expand(n, *theta.shape[1:]).flatten(0, 1)
        return derivatives.sample(input, theta, fill, image_index, extents, options).unflatten(0, (n, k))
    if is_recording:
        theta = tracing.matrices_for_all(theta, input, image_index)
    else:
        m = n if image_index is None else image_index.shape[0]
        if theta.shape[0] == 1 and m != 1:
            theta = theta.expand(m, *theta.shape[1:])
    return derivatives.sample(input, theta, fill, image_index, extents, options)


def _checked(
    kind: str,
    input: Tensor,
    theta: Tensor,
    size: int | Sequence[int] | None,
    points: Sequence[int] | Sequence[Sequence[float]] | None,
    fill_value: float | Sequence[float] | Tensor | None,
    image_index: Tensor | None,
    options: Options,
) -> tuple[list[int], Tensor | None, Options]:
    """Check all arguments. Returns the size per axis, fill values (C,) or (), and options with points."""
    dim = images(input, volumes=kind == "affine").ndim - 2
    if kind == "affine":
        maps("theta", theta, dim, dim + 1, input, image_index)
    elif kind == "projective":
        maps("theta", theta, 3, 3, input, image_index)
    else:
        floating("offsets", theta)
        if theta.ndim not in (3, 4) or theta.shape[-1] != 2:
            raise ValueError(f"offsets must have shape (N, P, 2) or (N, K, P, 2), got {tuple(theta.shape)}")
        flat = control_points("points", points, theta.shape[-2])
        maps("offsets", theta, len(flat) // 2, 2, input, image_index)
        options = options._replace(points=tuple(flat))
    if size is None:
        size = list(input.shape[2:])
    else:
        size = output_size(size, dim, {dim + 2: "; give the spatial size alone, without (N, C)"})
        # Checked here, because the dispatcher takes no larger ints.
        limits.check_size(size, input.dtype, options.antialias)
    choice("mode", options.mode, MODES)
    sampled_dtype(input.dtype, options)
    choice("padding_mode", options.padding_mode, PADDING_MODES)
    if options.mode == "bicubic" and dim == 3:
        raise ValueError("mode must be 'bilinear' or 'nearest' for volumes (5-D input), got 'bicubic'")
    return size, fill_values(fill_value, options.padding_mode, input), options
