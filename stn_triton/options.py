"""The options of the operator, as data for all modules."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MODES = ("bilinear", "nearest", "bicubic")


class Padding(NamedTuple):
    """A padding mode. ``kernels/taps.py`` and ``reference_taps.py`` implement it."""

    code: int
    """Its number in the kernels."""
    sampler: str | None
    """The padding mode of PyTorch's and ONNX's samplers that serves for it; None if there is none."""
    has_outside: bool
    """Whether positions outside the image see none of its pixels."""
    repeats: bool
    """Whether the image repeats endlessly, so that positions far outside see different pixels."""


PADDINGS = {
    "zeros": Padding(0, "zeros", has_outside=True, repeats=False),
    "border": Padding(1, "border", has_outside=False, repeats=False),
    "reflection": Padding(2, "reflection", has_outside=False, repeats=True),
    "fill": Padding(3, "zeros", has_outside=True, repeats=False),
    "wrap": Padding(4, None, has_outside=False, repeats=True),
}
PADDING_MODES = tuple(PADDINGS)
PAIR_PADDINGS = tuple(name for name, padding in PADDINGS.items() if padding.sampler == name)
"""Padding modes of ``F.grid_sample``, in the order of their numbers in PyTorch."""
DISPLACEMENTS = {"none": 0, "thin_plate": 1}
"""Terms added to the positions that a matrix gives, with their numbers in ``kernels/displacement.py``."""
THETA_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LABEL_DTYPES = (torch.bool, torch.int8, torch.int16, torch.int32, torch.int64)
"""Dtypes of label maps, which only ``"nearest"`` samples: values between two labels mean nothing."""
INPUT_DTYPES = (*THETA_DTYPES, torch.uint8, *LABEL_DTYPES)
INT_DTYPES = (torch.uint8, *LABEL_DTYPES[1:])


class Options(NamedTuple):
    """How to sample, in the order of the operators' schemas."""

    mode: str = "bilinear"
    padding_mode: str = "zeros"
    align_corners: bool = False
    antialias: bool = False
    points: tuple[float, ...] = ()
    """x and y of each control point of a spline; theta is then the offsets (M, P, 2)."""

    def taps(self) -> int:
        """Number of pixels per axis that a position is interpolated from."""
        return {"nearest": 1, "bilinear": 2, "bicubic": 4}[self.mode]

    @property
    def padding(self) -> Padding:
        """The ``Padding`` that ``padding_mode`` names."""
        return PADDINGS[self.padding_mode]

    @property
    def displacement(self) -> str:
        """The term added to the positions that the matrix gives, one of ``DISPLACEMENTS``."""
        return "thin_plate" if self.points else "none"


DEFAULT = Options()


class Tangents(NamedTuple):
    """Tangents of the arguments of the operator; None is a tangent of zeros."""

    input: Tensor | None
    theta: Tensor
    fill: Tensor | None


def is_projective(theta_shape: tuple[int, ...]) -> bool:
    """Whether matrices have the last row of a projective map: (..., D + 1, D + 1), not (..., D, D + 1)."""
    return theta_shape[-2] == theta_shape[-1]
