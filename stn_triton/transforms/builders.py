"""Builders of theta, each for one kind of map; ``combined.py`` combines them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stn_triton import tracing, validation
from stn_triton.plain import SYMBOLIC, plain
from stn_triton.transforms import inputs
from stn_triton.transforms.algebra import with_shift

Numbers = Tensor | float | Sequence  # sequences may be nested; arrays are allowed too


@tracing.overridable
def identity(
    dim: int = 2, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """The theta that changes nothing.

    Args:
        dim: 2 for images, 3 for volumes.
        dtype: default: PyTorch's default dtype.
        device: default: PyTorch's default device.

    Returns:
        (2, 3) or (3, 4).

    Raises:
        ValueError: ``dim`` is not 2 or 3.

    Example:
        >>> from stn_triton import transforms
        >>> transforms.identity()
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    dim = validation.dimension(dim)
    return torch.eye(dim, dim + 1, dtype=dtype, device=device)


@tracing.overridable
def translation(shift: Numbers) -> Tensor:
    """Shift the crop: output position p samples the input at p + shift, so the picture moves by -shift.

    Args:
        shift: (..., 2) as (x, y), or (..., 3) as (x, y, z); floating, normalised: 2 is the whole side of the
            input. A pixel is 2 / W for x and 2 / H for y; with ``align_corners=True`` 2 / (W - 1) and
            2 / (H - 1).

    Returns:
        (..., 2, 3) or (..., 3, 4).

    Raises:
        TypeError: ``shift`` holds no real numbers.
        ValueError: ``shift`` has another shape.

    Example:
        >>> import torch, stn_triton
        >>> image = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
        >>> one_pixel_right = stn_triton.transforms.translation([2 / 4, 0.0])
        >>> stn_triton.affine_grid_sample(image, one_pixel_right[None])
        tensor([[[[2., 3., 4., 0.]]]])
    """
    shift = inputs.vectors("shift", shift, (2, 3), "(..., 2) or (..., 3)")
    dim = tracing.shape_of(shift)[-1]
    linear = torch.eye(dim, dtype=shift.dtype, device=shift.device)
    return with_shift(linear, shift)


@tracing.overridable
def scale(factors: Numbers, *, dim: int = 2) -> Tensor:
    """Scale the crop: factors below 1 cut out a part and enlarge it, factors above 1 shrink the picture.

    Args:
        factors: (..., 2) as (x, y), (..., 3) as (x, y, z), or (..., 1) or one number for all axes;
            floating. Negative ones mirror.
        dim: 2 for images, 3 for volumes; used only with one factor for all axes.

    Returns:
        (..., 2, 3) or (..., 3, 4).

    Raises:
        TypeError: ``factors`` holds no real numbers.
        ValueError: ``factors`` has another shape, or ``dim`` is not 2 or 3.

    Example:
        >>> from stn_triton import transforms
        >>> transforms.scale([0.5, 2.0])
        tensor([[0.5000, 0.0000, 0.0000],
                [0.0000, 2.0000, 0.0000]])
    """
    dim = validation.dimension(dim)
    factors = inputs.vectors("factors", factors, (1, 2, 3), "(..., 1), (..., 2) or (..., 3)")
    if tracing.shape_of(factors)[-1] == 1:
        factors = factors.expand(*factors.shape[:-1], dim)
    return about_the_centre(diagonal(factors))


@tracing.overridable
def rotation(angle: Numbers, *, aspect: float | Tensor = 1.0) -> Tensor:
    """Turn the picture counter-clockwise about its centre, as seen with y pointing down.

    The sampling positions turn the other way, from the x axis towards the y axis. An image that is not
    square needs ``aspect``, because a rotation of its normalised coordinates would shear it.

    Args:
        angle: (...), floating, radians.
        aspect: W / H of the input, or (W - 1) / (H - 1) for ``align_corners=True``: a positive number, or an
            array or a tensor that broadcasts with ``angle``. The output should have the same aspect.

    Returns:
        (..., 2, 3).

    Raises:
        TypeError: ``angle`` holds no real numbers.
        ValueError: ``aspect`` is not positive.

    Example:
        >>> import math, torch, stn_triton
        >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> quarter_turn = stn_triton.transforms.rotation(math.pi / 2)
        >>> stn_triton.affine_grid_sample(image, quarter_turn[None]).round()
        tensor([[[[2., 4.],
                  [1., 3.]]]])
    """
    angle = inputs.tensor("angle", angle)
    cos, sin = angle.cos(), angle.sin()
    linear = torch.stack((cos, -sin, sin, cos), dim=-1).reshape(*angle.shape, 2, 2)
    return about_the_centre(on_sides(linear, aspect))


@tracing.overridable
def rotation_3d(vector: Numbers, *, aspect: Sequence[float | Tensor] = (1.0, 1.0, 1.0)) -> Tensor:
    """Turn the sampling positions about the direction of ``vector``, by its length (the exponential map).

    The turn follows the right-hand rule in (x, y, z): (0, 0, a) turns x towards y, as ``rotation(a)`` does in
    each slice. The numbers need no constraint, and theta is smooth in them. So a localisation network can
    start at zero, where an angle and an axis would have no gradient.

    Args:
        vector: (..., 3) as (x, y, z), floating, radians.
        aspect: (W, H, D) of the input up to a common factor: positive numbers, or arrays or tensors that
            broadcast with (...). For ``align_corners=True`` each is one less; anisotropic voxels multiply
            each by their spacing.

    Returns:
        (..., 3, 4).

    Raises:
        TypeError: ``vector`` holds no real numbers.
        ValueError: ``vector`` has another shape, or ``aspect`` is not three positive numbers.

    Example:
        >>> import math
        >>> from stn_triton import transforms
        >>> transforms.rotation_3d([0.0, 0.0, math.pi / 2]).round() + 0.0
        tensor([[ 0., -1.,  0.,  0.],
                [ 1.,  0.,  0.,  0.],
                [ 0.,  0.,  1.,  0.]])
    """
    vector = inputs.vectors("vector", vector, (3,), "(..., 3)")
    # With t = |v| and K = [v]x: exp(K) = cos t I + (sin t / t) K + ((1 - cos t) / t^2) v v^T. The ratios are
    # smooth functions of t^2, written as power series in it where it is small: sqrt has no gradient at 0.
    square = (vector * vector).sum(dim=-1, dtype=vector.dtype)
    near = square < 1
    angle = torch.where(near, 1, square).sqrt()
    half = (angle / 2).sin() / (angle / 2)
    small = torch.where(near, square, 0)
    first = torch.where(near, _series(small, 1), angle.sin() / angle)[..., None, None]
    second = torch.where(near, _series(small, 2), half * half / 2)[..., None, None]
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).unflatten(-1, (3, 3))
    outer = vector.unsqueeze(-1) * vector.unsqueeze(-2)
    identity = torch.eye(3, dtype=vector.dtype, device=vector.device)
    linear = (1 - second * square[..., None, None]) * identity + first * cross + second * outer
    return about_the_centre(on_sides(linear, aspect))


@tracing.overridable
def shear(factors: Numbers, *, aspect: float | Tensor | Sequence[float | Tensor] | None = None) -> Tensor:
    """Shear the sampling positions: add multiples of the other coordinates to each coordinate.

    Args:
        factors: (..., 2): how much of y is added to x, and of x to y: (k, 0) samples at (x + k y, y). For
            volumes (..., 6): of y and z to x, of x and z to y, of x and y to z. Floating; each is the tangent
            of an angle.
        aspect: as in ``rotation``, for volumes as in ``rotation_3d``; with it, angles are those in pixels.

    Returns:
        (..., 2, 3) or (..., 3, 4).

    Raises:
        TypeError: ``factors`` holds no real numbers.
        ValueError: ``factors`` has another shape, or ``aspect`` is not positive.

    Example:
        >>> from stn_triton import transforms
        >>> transforms.shear([0.5, 0.0])
        tensor([[1.0000, 0.5000, 0.0000],
                [0.0000, 1.0000, 0.0000]])
    """
    factors = inputs.vectors("factors", factors, (2, 6), "(..., 2) or (..., 6)")
    one = tracing.zeros_like(factors[..., 0]) + 1
    if tracing.shape_of(factors)[-1] == 2:
        xy, yx = factors.unbind(-1)
        entries, dim = (one, xy, yx, one), 2
    else:
        xy, xz, yx, yz, zx, zy = factors.unbind(-1)
        entries, dim = (one, xy, xz, yx, one, yz, zx, zy, one), 3
    linear = torch.stack(entries, dim=-1).unflatten(-1, (dim, dim))
    return about_the_centre(linear if aspect is None else on_sides(linear, aspect))


def diagonal(entries: Tensor) -> Tensor:
    """Replace ``torch.diag_embed``, which the older ONNX exporter does not know."""
    at = torch.arange(tracing.shape_of(entries)[-1], device=entries.device)
    return torch.where(at == at[:, None], entries.unsqueeze(-1), 0)


def about_the_centre(linear: Tensor) -> Tensor:
    """Add a shift of zero to a linear map (..., D, D)."""
    return torch.cat((linear, tracing.zeros_like(linear[..., :1])), dim=-1)


def on_sides(linear: Tensor, aspect: float | Tensor | Sequence[float | Tensor]) -> Tensor:
    """Convert a linear map of pixels to normalised coordinates, where axis i is ``aspect[i]`` long."""
    dim = tracing.shape_of(linear)[-1]
    if isinstance(aspect, Tensor):
        validation.tensor("aspect", aspect)
    if dim == 2:
        sides = [_side(aspect, linear), 1.0]
    elif getattr(aspect, "ndim", 1) == 0 or not hasattr(aspect, "__len__") or len(aspect) != dim:
        raise ValueError(f"aspect must be three numbers (W, H, D) for volumes, {validation.got(aspect)}")
    else:
        sides = [_side(side, linear) for side in aspect]
    numbers = [side for side in sides if isinstance(side, (int, float))]
    if len(numbers) == dim and min(numbers) == max(numbers):
        return linear
    # A side without dimensions is one for all maps, also if a trace has recorded it as a tensor.
    are_single = not any(isinstance(side, Tensor) and side.ndim > 0 for side in sides)
    sides = [side.unsqueeze(-1) if isinstance(side, Tensor) else side for side in sides]
    columns = [column * side for column, side in zip(linear.unbind(-1), sides, strict=True)]
    linear = torch.stack(columns if are_single else torch.broadcast_tensors(*columns), dim=-1)
    rows = [row / side for row, side in zip(linear.unbind(-2), sides, strict=True)]
    return torch.stack(rows if are_single else torch.broadcast_tensors(*rows), dim=-2)


def _side(aspect: Any, like: Tensor) -> float | Tensor:
    """Check the length of an axis: a number above 0, or a tensor, whose values are not read."""
    if isinstance(aspect, Tensor):
        return validation.tensor("aspect", aspect)
    side = plain("aspect", aspect)
    if isinstance(side, SYMBOLIC):
        return side
    if validation.is_number(side):
        is_positive = side > 0
    elif hasattr(side, "ndim"):
        is_positive, side = bool((side > 0).all()), inputs.tensor("aspect", side, like)
    else:
        raise TypeError(f"aspect must be a number, an array or a tensor, W / H, {validation.got(aspect)}")
    if not is_positive:
        raise ValueError(f"aspect must be positive, {validation.got(aspect)}")
    return side


def _series(square: Tensor, power: int) -> Tensor:
    """Sum over k of (-square)^k / (2 k + power)!, exact in fp64 for square <= 1, derivatives too."""
    total, terms = torch.zeros_like(square), 10
    for k in reversed(range(terms)):
        # Horner's rule: each step divides by the growth of the factorial.
        total = (1 - square * total) / max((2 * k + power) * (2 * k + power - 1), 1)
    return total
