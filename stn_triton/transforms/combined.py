"""Builders of theta from several parts: affine maps from their parameters, and boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stn_triton import tracing, validation
from stn_triton.transforms import builders, inputs
from stn_triton.transforms.algebra import compose, with_shift
from stn_triton.transforms.builders import Numbers
from stn_triton.transforms.inputs import Sizes


@tracing.overridable
def affine(
    *,
    angle: Numbers | None = None,
    scale: Numbers | None = None,
    shear: Numbers | None = None,
    translation: Numbers | None = None,
    aspect: float | Tensor | Sequence[float | Tensor] | None = None,
    dim: int = 2,
) -> Tensor:
    """Build theta from its parts: ``compose(translation, rotation, shear, scale)``, without parts of None.

    An output position is scaled, then sheared, turned and shifted to the input position that it samples:
    ``translation`` is the centre of the crop, ``scale`` its size and ``angle`` its direction in the input.

    Args:
        angle: (...) radians, as in ``rotation``; for volumes (..., 3), as in ``rotation_3d``.
        scale: one number, (..., 1) or (..., D), as in ``scale``.
        shear: (..., 2), for volumes (..., 6), as in ``shear``.
        translation: (..., D), as in ``translation``.
        aspect: as in ``rotation`` and ``rotation_3d``. Default: that of a square or a cube.
        dim: 2 for images, 3 for volumes.

    Returns:
        (..., 2, 3) or (..., 3, 4), leading dimensions broadcast. Tensors must agree in dtype (16 bits
        count as fp32) and device; numbers take those of the tensors.

    Raises:
        TypeError: a part holds no real numbers, or dtypes differ.
        ValueError: a part has the wrong shape for ``dim``, ``aspect`` is not positive, or no part is given.

    Example:
        >>> from stn_triton import transforms
        >>> transforms.affine(scale=[0.5], translation=[0.25, 0.0])
        tensor([[0.5000, 0.0000, 0.2500],
                [0.0000, 0.5000, 0.0000]])
    """
    dim = validation.dimension(dim)
    given = {"translation": translation, "angle": angle, "shear": shear, "scale": scale}
    typed = [
        inputs.tensor(name, value)
        for name, value in given.items()
        if isinstance(value, Tensor) or inputs.is_array(value)
    ]
    parts = {
        name: inputs.tensor(name, value, typed[0] if typed else None)
        for name, value in given.items()
        if value is not None
    }
    if not parts:
        raise ValueError("affine needs at least one of angle, scale, shear and translation, got none")
    first = next(iter(parts))
    for name in parts:
        if parts[name].dtype != parts[first].dtype:
            raise TypeError(
                f"{name} must have the dtype of {first}, {parts[first].dtype}, got {parts[name].dtype}"
            )
    lengths = {"translation": (dim,), "shear": (dim * (dim - 1),), "scale": (1, dim)}
    if dim == 3:
        lengths["angle"] = (3,)
    for name in parts.keys() & lengths.keys():
        words = " or ".join([f"(..., {length})" for length in lengths[name]])
        inputs.vectors(name, parts[name], lengths[name], f"{words} for dim={dim}")
    if aspect is None:
        aspect = 1.0 if dim == 2 else (1.0, 1.0, 1.0)
    rotate = builders.rotation if dim == 2 else builders.rotation_3d
    build = {
        "translation": builders.translation,
        "angle": lambda value: rotate(value, aspect=aspect),
        "shear": lambda value: builders.shear(value, aspect=aspect),
        "scale": lambda value: builders.scale(value, dim=dim),
    }
    return compose(*[build[name](value) for name, value in parts.items()])


@tracing.overridable
def boxes(
    boxes: Numbers, size_in: Sizes, *, angle: Numbers | None = None, align_corners: bool = False
) -> Tensor:
    """Build theta that crops boxes, given in pixels by their edges: (0, 0, W, H) is the whole image.

    The pixels of the output tile the box, whatever the size of the output; the sample points are those of
    RoIAlign(aligned=True, sampling_ratio=1). A box of whole pixels cropped at its own size is copied. A box
    without area (x1 = x2 or y1 = y2) samples its point or line repeatedly; there RoIAlign with its default
    ``sampling_ratio`` gives zeros.

    Args:
        boxes: (..., 4) as (x1, y1, x2, y2), or (..., 6) as (x1, y1, z1, x2, y2, z2); floating, in pixels from
            the corner of the first pixel.
        size_in: (H, W) or (D, H, W) of the input.
        angle: (...) radians in pixels, for images only. The box turns about its centre, from the x axis
            towards the y axis, clockwise on the screen (as for cv2's ``RotatedRect``, in degrees there). An
            object turned by this angle is upright in the crop.
        align_corners: the ``align_corners`` of the operator. With True the corner samples lie on the
            centres of the corner pixels of the box, half a pixel inside its edges.

    Returns:
        (..., 2, 3) or (..., 3, 4).

    Raises:
        TypeError: ``boxes`` or ``angle`` holds no real numbers, or ``size_in`` holds no ints.
        ValueError: ``boxes`` and ``size_in`` differ in dimension, or there is an ``angle`` for volumes.

    Example:
        >>> import torch, stn_triton
        >>> image = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> theta = stn_triton.transforms.boxes([[1.0, 0.0, 3.0, 2.0]], (4, 4))
        >>> stn_triton.affine_grid_sample(image, theta, size=2)
        tensor([[[[1., 2.],
                  [5., 6.]]]])
    """
    extents = inputs.sizes("size_in", size_in)
    dim = len(extents)
    names = "(..., 4)" if dim == 2 else "(..., 6)"
    boxes = inputs.vectors("boxes", boxes, (2 * dim,), f"{names} for size_in {tuple(size_in)}")
    low, high = boxes[..., :dim].unbind(-1), boxes[..., dim:].unbind(-1)
    inset = 1 if validation.corners(align_corners) else 0
    extents = inputs.as_like(extents, boxes)
    units = [tracing.at_least(1, extent - inset) for extent in extents]
    axes = list(zip(low, high, extents, units, strict=True))
    shift = torch.stack([(a + b - extent) / unit for a, b, extent, unit in axes], dim=-1)
    spans = [b - a - inset for a, b, _, _ in axes]
    if angle is None:
        factors = torch.stack([span / unit for span, unit in zip(spans, units, strict=True)], dim=-1)
        linear = builders.diagonal(factors)
    elif dim == 3:
        raise ValueError(f"angle must be None for volumes, size_in {tuple(size_in)}, {validation.got(angle)}")
    else:
        turn = builders.rotation(inputs.tensor("angle", angle, boxes))[..., :2]
        linear = turn * torch.stack(spans, dim=-1).unsqueeze(-2)
        linear = torch.stack([row / unit for row, unit in zip(linear.unbind(-2), units, strict=True)], dim=-2)
    return with_shift(linear, shift)
