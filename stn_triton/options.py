"""What can be asked of the operator, as data that every layer shares."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MODES = ("bilinear", "nearest", "bicubic")


class Padding(NamedTuple):
    """What lies outside an image. How, is said in ``kernels/taps.py`` and ``reference_taps.py``."""

    code: int
    """In the kernels."""
    sampler: str | None
    """The padding that PyTorch's and ONNX's samplers have for it; None if they have none."""
    has_outside: bool
    """Whether there are positions outside, which see no pixel of the image."""
    repeats: bool
    """Whether the image is there again and again: far outside, too, each position has a pixel of its own."""


PADDINGS = {
    "zeros": Padding(0, "zeros", has_outside=True, repeats=False),
    "border": Padding(1, "border", has_outside=False, repeats=False),
    "reflection": Padding(2, "reflection", has_outside=False, repeats=True),
    "fill": Padding(3, "zeros", has_outside=True, repeats=False),
    "wrap": Padding(4, None, has_outside=False, repeats=True),
}
PADDING_MODES = tuple(PADDINGS)
PAIR_PADDINGS = tuple(name for name, padding in PADDINGS.items() if padding.sampler == name)
"""Those that ``F.grid_sample`` has, in the order of its numbers."""
DISPLACEMENTS = {"none": 0, "thin_plate": 1}
"""What is added to the positions of a matrix, with its number in the kernels: ``kernels/displacement.py``."""
THETA_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LABEL_DTYPES = (torch.bool, torch.int8, torch.int16, torch.int32, torch.int64)
"""Of label maps: their values are names, between which nothing lies, so ``"nearest"`` alone is for them."""
INPUT_DTYPES = (*THETA_DTYPES, torch.uint8, *LABEL_DTYPES)
INT_DTYPES = (torch.uint8, *LABEL_DTYPES[1:])


class Options(NamedTuple):
    """How to sample, in the order of the operators' schemas."""

    mode: str = "bilinear"
    padding_mode: str = "zeros"
    align_corners: bool = False
    antialias: bool = False
    points: tuple[float, ...] = ()
    """x and y of a spline's control points, one after the other: theta has their offsets (M, P, 2)."""

    def taps(self) -> int:
        """Pixels per axis that a position is interpolated from."""
        return {"nearest": 1, "bilinear": 2, "bicubic": 4}[self.mode]

    @property
    def padding(self) -> Padding:
        """What ``padding_mode`` names."""
        return PADDINGS[self.padding_mode]

    @property
    def displacement(self) -> str:
        """What is added to the positions of the matrix, one of ``DISPLACEMENTS``."""
        return "thin_plate" if self.points else "none"


DEFAULT = Options()


class Tangents(NamedTuple):
    """Directions in which the arguments of the operator move; None for one that stays."""

    input: Tensor | None
    theta: Tensor
    fill: Tensor | None


def is_projective(theta_shape: tuple[int, ...]) -> bool:
    """Whether matrices have the last row of a projective map: (..., D + 1, D + 1), not (..., D, D + 1)."""
    return theta_shape[-2] == theta_shape[-1]
