"""Named maps from output to input: what a workload's images are warped by.

A map is a linear part, which says what share of the picture it shows and how it is turned, and a shift.
Matrices are in normalised coordinates, as ``F.affine_grid`` takes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# In input pixels, x first. At whole pixels, where the plain identity has all its samples, the derivative for
# theta jumps, and rounding decides on which side a provider lands: nothing could be checked there. So every
# map is shifted, for the gate and the clock alike; the random ones are anyway. Far from the multiples of a
# quarter, where zoom-2 has its samples. It is no favour to the operator, which reads one pixel instead of
# four at whole pixels.
SHIFT = (0.37, 0.29, 0.42)


@dataclass(frozen=True)
class Map:
    """One map, in words and as its linear part."""

    name: str
    what: str
    linear: Callable[[int, int, torch.Generator], Tensor]
    """Of batch, dimensions and a generator: (batch, D, D), in pixels at equal sizes of input and output."""
    shrink: float | None = 1.0
    """How many input pixels a step of one output pixel crosses at equal sizes; None if images differ."""


def _rotation(degrees: float) -> Callable[[int, int, torch.Generator], Tensor]:
    angle = math.radians(degrees)
    turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]

    def linear(batch: int, dim: int, generator: torch.Generator) -> Tensor:
        return _in_plane(torch.tensor(turn).expand(batch, 2, 2), dim)

    return linear


def _zoom(factor: float) -> Callable[[int, int, torch.Generator], Tensor]:
    return lambda batch, dim, generator: torch.eye(dim).expand(batch, dim, dim) / factor


def _mild(batch: int, dim: int, generator: torch.Generator) -> Tensor:
    angle = _uniform(-math.pi / 6, math.pi / 6, batch, generator)
    scale = torch.exp(_uniform(math.log(0.8), math.log(1.25), batch, generator))
    cos, sin = scale * angle.cos(), scale * angle.sin()
    return _in_plane(torch.stack((cos, -sin, sin, cos), dim=1).view(batch, 2, 2), dim)


def _uniform(low: float, high: float, batch: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(batch, generator=generator)


def _in_plane(linear: Tensor, dim: int) -> Tensor:
    """Matrices (batch, 2, 2) of x and y; the third axis of a volume stays."""
    if dim == 2:
        return linear
    whole = torch.eye(dim).repeat(len(linear), 1, 1)
    whole[:, :2, :2] = linear
    return whole


RANDOM = "random"
# What a CPU and what a first look has the time for.
CPU_MAPS, QUICK_MAPS = ("identity", RANDOM), (RANDOM,)
MAPS = {
    one.name: one
    for one in (
        Map("identity", "nothing is moved: where a spatial transformer starts to learn", _zoom(1)),
        Map("rotate-30", "rotation by 30 degrees; of volumes about one axis", _rotation(30)),
        Map("rotate-45", "rotation by 45 degrees; the corners of the output see nothing", _rotation(45)),
        Map(
            "zoom-0.5",
            "the picture at half its size; three quarters of the output see nothing",
            _zoom(0.5),
            2,
        ),
        Map("zoom-2", "the middle of the picture at twice its size", _zoom(2), 0.5),
        Map(
            RANDOM,
            "mild, one for each image: up to 30 degrees, scale 0.8 to 1.25, moved by up to 10 %",
            _mild,
            None,
        ),
    )
}


def matrices(
    name: str, batch: int, size_in: Sequence[int], generator: torch.Generator, scale: float = 1.0
) -> Tensor:
    """A matrix for each of ``batch`` outputs: (batch, D, D + 1), for inputs of ``size_in``.

    ``scale`` multiplies what is shown: 0.05 shows a twentieth of each axis, moved by the shift alone.
    """
    dim = len(size_in)
    extents = torch.tensor([float(n) for n in reversed(size_in)])
    linear = MAPS[name].linear(batch, dim, generator) * scale
    # What is a rotation in pixels has other numbers where the axes of the normalised square differ in length.
    linear = linear * extents / extents[:, None]
    shift = (2 * torch.tensor(SHIFT[:dim]) / extents).repeat(batch, 1)
    if name == RANDOM:
        for axis in range(2):  # x and y; in volumes the third axis stays as it is
            shift[:, axis] = _uniform(-0.2, 0.2, batch, generator)
    return torch.cat((linear, shift[:, :, None]), dim=2)
