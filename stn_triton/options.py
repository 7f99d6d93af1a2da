"""What can be asked of the operator, as data that every layer shares."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MODES = ("bilinear", "nearest", "bicubic")
PADDING_MODES = ("zeros", "border", "reflection", "fill")
INPUT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8)
THETA_DTYPES = INPUT_DTYPES[:4]


class Options(NamedTuple):
    """How to sample; the last arguments of the operators, in their order."""

    mode: str = "bilinear"
    padding_mode: str = "zeros"
    align_corners: bool = False
    antialias: bool = False
    points: tuple[float, ...] = ()
    """x and y of a spline's control points, one after the other: theta has their offsets (M, P, 2)."""

    def taps(self) -> int:
        """Pixels per axis that a position is interpolated from."""
        return {"nearest": 1, "bilinear": 2, "bicubic": 4}[self.mode]


DEFAULT = Options()


class Tangents(NamedTuple):
    """Directions in which the arguments of the operator move; None for one that stays."""

    input: Tensor | None
    theta: Tensor
    fill: Tensor | None


def is_projective(theta_shape: tuple[int, ...]) -> bool:
    """Whether matrices have the last row of a projective map: (..., D + 1, D + 1), not (..., D, D + 1)."""
    return theta_shape[-2] == theta_shape[-1]
