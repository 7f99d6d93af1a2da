"""Conversion of the numbers that a localisation network returns into theta.

The numbers are offsets from the identity: for every transform, zeros give the identity. So weight decay
pulls a crop towards the whole image, not into a point, and 16-bit weights keep small movements. The scale of
attention and similarity is p + sqrt(1 + p^2): about 1 + p near the identity, 2 p for large p, never negative.
A negative scale would mirror the image, and training does not recover from that.

A bounded crop stays in the image. With linear part a and shift t, a crop reaches along axis i from t_i - n_i
to t_i + n_i, where n_i is the sum over j of |a_ij|. The numbers of a bounded crop give a linear part r and a
shift u without bounds, and

    a_ij = r_ij / sqrt(1 + m_i^2),    t_i = (1 - m_i / sqrt(1 + m_i^2)) tanh u_i,

where m_i is the sum over j of sqrt(r_ij^2 + e^2) with a small e, a smooth upper bound on the sum of |r_ij|.
Then n_i < 1 and |t_i| < 1 - n_i. If all axes share one scale, the largest m_i stands in all square roots. The
whole image lies on the bound, where every gradient is zero: a bounded crop must start smaller.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stn_triton import splines, tracing, transforms, validation

TRANSFORMS = ("affine", "attention", "translation", "rotation", "similarity", "projective", "tps")
BOUNDED = ("affine", "attention", "translation", "similarity")
IMAGES_ONLY = ("projective", "tps")
_FIXED_SCALE = ("translation", "rotation")
_INITIALIZATIONS = ("identity", "tiles")
_BOUNDED_SCALE = 0.75
_SMOOTHING = 0.01


@dataclass(frozen=True)
class Parametrization:
    """Conversion of numbers into theta; ``scale`` is the initial one, which some transforms keep."""

    transform: str
    dim: int
    points: tuple[float, ...]  # x and y of each control point, one after the other
    bounded: bool
    scale: float

    @property
    def count(self) -> int:
        """How many numbers make one theta."""
        turns = 1 if self.dim == 2 else 3
        return {
            "affine": self.dim * (self.dim + 1),
            "attention": 1 + self.dim,
            "translation": self.dim,
            "rotation": turns,
            "similarity": 1 + turns + self.dim,
            "projective": 8,
            "tps": len(self.points),
        }[self.transform]

    def identity(self) -> Tensor:
        """Numbers that would be the identity if they were not offsets from it."""
        if self.transform == "affine":
            return torch.eye(self.dim, self.dim + 1).flatten()
        if self.transform == "projective":
            return torch.eye(3).flatten()[:-1]
        numbers = torch.zeros(self.count)
        if self.transform in ("attention", "similarity"):
            numbers[0] = 1
        return numbers

    def start(self, centre: Sequence[float]) -> list[float]:
        """The numbers that give a crop of ``self.scale`` around ``centre``."""
        scale, shift = self.scale, list(centre)
        if self.bounded:
            scale, shift = self._unbound(shift)
        if self.transform == "translation":
            return shift
        if self.transform in ("attention", "similarity"):
            number = (scale - 1 / scale) / 2  # sinh(log(scale))
            return [number, *[0.0] * (self.count - 1 - self.dim), *shift]
        if self.transform == "affine":
            rows = [[*[(scale - 1) * (i == j) for j in range(self.dim)], s] for i, s in enumerate(shift)]
            return [entry for row in rows for entry in row]
        if self.transform == "projective":
            return [scale - 1, 0.0, shift[0], 0.0, scale - 1, shift[1], 0.0, 0.0]
        if self.transform == "tps":
            return [(scale - 1) * at + s for at, s in zip(self.points, itertools.cycle(shift), strict=False)]
        return [0.0] * self.count

    def theta(self, numbers: Tensor, sides: Sequence[float]) -> Tensor:
        """Convert numbers (..., count) into theta.

        Args:
            numbers: fp32 or fp64.
            sides: lengths of the input's axes, x first, up to a common factor; with them, rotations of an
                image that is not square do not shear it.

        Returns:
            (..., D, D + 1); (..., 3, 3) for ``"projective"``; offsets (..., P, 2) for ``"tps"``.
        """
        dim = self.dim
        if self.transform == "tps":
            return numbers.unflatten(-1, (-1, 2))
        if self.transform == "projective":
            full = torch.cat((numbers, torch.zeros_like(numbers[..., :1])), dim=-1).unflatten(-1, (3, 3))
            return full + torch.eye(3, dtype=numbers.dtype, device=numbers.device)
        if self.transform == "affine":
            rows = numbers.unflatten(-1, (dim, dim + 1))
            rows = rows + torch.eye(dim, dim + 1, dtype=numbers.dtype, device=numbers.device)
            linear, shift = rows[..., :-1], rows[..., -1]
        else:
            linear, shift = self._similarity(numbers, sides)
        if self.bounded:
            linear, shift = self._bound(linear, shift)
        return torch.cat((linear, shift.unsqueeze(-1)), dim=-1)

    def _similarity(self, numbers: Tensor, sides: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Linear part and shift of a transform with a scale, angles, a shift, or several of these."""
        dim, scale = self.dim, self.scale
        if self.transform not in _FIXED_SCALE:
            scale, numbers = _scale(numbers[..., 0, None, None]), numbers[..., 1:]
        if self.transform in ("rotation", "similarity"):
            if dim == 2:
                angles, numbers = numbers[..., 0], numbers[..., 1:]
                linear = transforms.rotation(angles, aspect=sides[0] / sides[1])[..., :-1]
            else:
                angles, numbers = numbers[..., :3], numbers[..., 3:]
                linear = transforms.rotation_3d(angles, aspect=sides)[..., :-1]
        else:
            linear = torch.eye(dim, dtype=numbers.dtype, device=numbers.device)
            linear = linear.expand(*numbers.shape[:-1], dim, dim)
        if self.transform == "rotation":
            numbers = torch.zeros_like(linear[..., 0])
        return scale * linear, numbers

    def _bound(self, linear: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        if self.transform == "translation":
            return linear, (1 - self.scale) * shift.tanh()
        reach = (linear.square() + _SMOOTHING**2).sqrt().sum(-1)
        longest = reach if self.transform == "affine" else reach.amax(-1, keepdim=True)
        factor = (1 + longest.square()).rsqrt()
        return linear * factor.unsqueeze(-1), (1 - reach * factor) * shift.tanh()

    def _unbound(self, shift: Sequence[float]) -> tuple[float, list[float]]:
        """Invert ``_bound``: find its input for ``self.scale`` times the identity, and ``shift``."""
        if self.transform == "translation":
            return self.scale, [math.atanh(s / (1 - self.scale)) for s in shift]
        low, high = 0.0, 1e6
        for _ in range(100):  # bisection: the bounded scale grows with the raw one
            raw = (low + high) / 2
            reach = math.hypot(raw, _SMOOTHING) + (self.dim - 1) * _SMOOTHING
            low, high = (low, raw) if raw / math.hypot(1, reach) > self.scale else (raw, high)
        left = 1 - reach / math.hypot(1, reach)
        return raw, [math.atanh(s / left) for s in shift]


def _scale(number: Tensor) -> Tensor:
    """The scale p + sqrt(1 + p^2), without cancellation or overflow."""
    if tracing.is_exporting():  # the older ONNX exporter does not know asinh
        root = (1 + number.square()).sqrt()
        return torch.where(number < 0, 1 / (root - number), root + number)
    return number.asinh().exp()


def parametrize(
    transform: str,
    dim: int,
    control_points: Sequence[int] | Sequence[Sequence[float]],
    transformers: int,
    initialization: str,
    scale: float | None,
    bounded: bool,
) -> tuple[Parametrization, list[float]]:
    """Check a layer's arguments; return its parametrization and the numbers that it starts from."""
    validation.choice("transform", transform, TRANSFORMS)
    if dim == 3 and transform in IMAGES_ONLY:
        choices = ", ".join([repr(name) for name in TRANSFORMS if name not in IMAGES_ONLY])
        raise ValueError(f"transform must be one of {choices} for volumes (dim=3), got {transform!r}")
    validation.choice("initialization", initialization, _INITIALIZATIONS)
    bounded = validation.flag("bounded", bounded)
    if bounded and transform not in BOUNDED:
        raise ValueError(
            f"bounded must be False for transform={transform!r}, got True: only "
            f"{', '.join(map(repr, BOUNDED))} can be; outside_penalty keeps others inside"
        )
    along, centres = [1] * dim, [[0.0] * dim] * transformers
    if initialization == "tiles":
        if transform == "rotation":
            raise ValueError(
                "initialization must be 'identity' for a rotation, which cannot move, got 'tiles'"
            )
        along, centres = tiles(transformers, dim)
    if scale is None:
        scale = (_BOUNDED_SCALE if bounded else 1.0) / max(along)
    scale = validation.positive("scale", scale)
    furthest = max([abs(at) for centre in centres for at in centre])
    if bounded and not scale + furthest < 1:
        raise ValueError(
            f"scale must be below {1 - furthest:.3g} if bounded, so that the initial crop does not reach the "
            f"edge of the input, where gradients are zero, got {scale}"
        )
    points = ()
    if transform == "tps":
        points = validation.control_points("control_points", control_points)
        splines.check("control_points", points)
    parametrization = Parametrization(transform, dim, tuple(points), bounded, scale)
    return parametrization, [number for centre in centres for number in parametrization.start(centre)]


def tiles(count: int, dim: int) -> tuple[list[int], list[list[float]]]:
    """Divide the input into ``count`` equal parts: parts along each axis, x first; centres, x fastest."""
    along = [1] * dim
    factor, rest, factors = 2, count, []
    while rest > 1:
        while rest % factor == 0:
            factors.append(factor)
            rest //= factor
        factor += 1
    for factor in reversed(factors):
        along[along.index(min(along))] *= factor
    axes = [[(2 * i + 1) / n - 1 for i in range(n)] for n in reversed(along)]
    return along, [list(reversed(centre)) for centre in itertools.product(*axes)]
