"""Rotations onto a canvas that holds the whole picture: theta and the size of the output together."""

from __future__ import annotations

import math

from torch import Tensor

from stn_triton import tracing
from stn_triton.transforms import inputs
from stn_triton.transforms.builders import Numbers, rotation
from stn_triton.transforms.inputs import Sizes
from stn_triton.transforms.pixels import normalise

_TOLERANCE = 1e-4  # pixels by which a rounded angle may exceed the canvas


@tracing.overridable
def expanded_rotation(
    angle: Numbers, size_in: Sizes, *, align_corners: bool = False
) -> tuple[Tensor, tuple[int, int]]:
    """Turn the picture counter-clockwise, as ``rotation``, on a canvas so large that nothing is cut off.

    torchvision and Pillow call this ``expand=True``, ``scipy.ndimage.rotate`` calls it ``reshape=True``.
    A quarter turn (to within 1e-4 pixels) only moves pixels, and its canvas has the input's sides. Any other
    canvas is as large as Pillow's and grows equally on opposite sides. Pixels keep their size, so ``aspect``
    is not needed.

    Args:
        angle: (...), floating, radians. All angles share one canvas, the largest.
        size_in: (H, W) of the input.
        align_corners: the ``align_corners`` of the operator.

    Returns:
        Theta (..., 2, 3) and size (H_out, W_out): call the operator with both. The size depends on the
        values of the angles. If ``angle`` is a tensor and not a number, reading it waits for a GPU, breaks
        the graph of a compiler, and fails in ``torch.export``.

    Raises:
        TypeError: ``angle`` holds no real numbers, or ``size_in`` holds no ints.
        ValueError: ``angle`` is not finite, or ``size_in`` is not (H, W).
        RuntimeError: ``angle`` or ``size_in`` holds tensors while ``torch.jit.trace`` records.

    Example:
        >>> import math, torch, stn_triton
        >>> image = torch.arange(6.0).reshape(1, 1, 2, 3)
        >>> theta, size = stn_triton.transforms.expanded_rotation(math.pi / 2, (2, 3))
        >>> stn_triton.affine_grid_sample(image, theta[None], size).round()
        tensor([[[[2., 5.],
                  [1., 4.],
                  [0., 3.]]]])
    """
    extents = inputs.sizes("size_in", size_in, (2,))
    if tracing.is_recording() and any(isinstance(value, Tensor) for value in (angle, *extents)):
        raise RuntimeError(
            "expanded_rotation must not depend on tensors while torch.jit.trace records, because the trace "
            "would fix its size: give angle and size_in as numbers"
        )
    turn = inputs.tensor("angle", angle)
    numbers = [angle] if type(angle) in (int, float) else turn.detach().flatten().tolist()
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"angle must be finite, got {numbers if len(numbers) < 10 else 'infinity or NaN'}")
    canvases = [_canvas(number, *extents) for number in numbers] or [extents]
    canvas = [max(lengths) for lengths in zip(*canvases, strict=True)]
    width, height = canvas
    return normalise(rotation(turn), extents, canvas, align_corners), (height, width)


def _canvas(angle: float, width: int, height: int) -> tuple[int, int]:
    """Compute the canvas (W, H) that a picture of (W, H) needs when turned by ``angle``."""
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    if min(cos, sin) * max(width, height) < _TOLERANCE:
        return (width, height) if sin < cos else (height, width)
    return (
        _grown(width, width * cos + height * sin),
        _grown(height, width * sin + height * cos),
    )


def _grown(length: int, needed: float) -> int:
    """Grow or shrink an axis to the length needed, by the same number of whole pixels at both ends."""
    return length + 2 * math.ceil((needed - length) / 2 - _TOLERANCE)
