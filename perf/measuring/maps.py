"""Named maps from output to input, by which a workload's images are warped."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# In input pixels, x first. At whole pixels, where the plain identity has all its samples, the derivative for
# theta jumps, and rounding decides on which side a provider lands: nothing could be checked there. Far from
# the multiples of a quarter too, where zoom-2 has its samples. The shift is no favour to the operator, which
# reads one pixel instead of four at whole pixels.
SHIFT = (0.37, 0.29, 0.42)


class Map(NamedTuple):
    """A rotation in the plane of x and y, and a zoom of all axes."""

    what: str
    degrees: float = 0.0
    shrink: float | None = 1.0  # input pixels per output pixel at equal sizes; None if images differ


RANDOM = "random"
MAPS = {
    "identity": Map("moved by part of a pixel only, near where a spatial transformer starts to learn"),
    "rotate-30": Map("rotation by 30 degrees; of volumes about one axis", 30),
    "rotate-45": Map("rotation by 45 degrees; the corners of the output see nothing", 45),
    "zoom-0.5": Map("the picture at half its size; three quarters of the output see nothing", shrink=2),
    "zoom-2": Map("the middle of the picture at twice its size", shrink=0.5),
    RANDOM: Map("one for each image: up to 30 degrees, scale 0.8 to 1.25, moved by up to 10 %", shrink=None),
}
CPU_MAPS, QUICK_MAPS = ("identity", RANDOM), (RANDOM,)  # that they have time for


def matrices(
    name: str, batch: int, size_in: Sequence[int], generator: torch.Generator, scale: float = 1.0
) -> Tensor:
    """A matrix for each of ``batch`` outputs: (batch, D, D + 1), as ``F.affine_grid`` takes them.

    ``scale`` multiplies what is shown: 0.05 shows a twentieth of each axis, moved by the shift alone.
    """
    dim, chosen = len(size_in), MAPS[name]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    if name == RANDOM:
        angle = uniform(-math.pi / 6, math.pi / 6)
        zoom = torch.exp(uniform(math.log(0.8), math.log(1.25)))
    else:
        angle, zoom = torch.full((batch,), math.radians(chosen.degrees)), torch.ones(())
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    linear = torch.eye(dim).repeat(batch, 1, 1)
    linear[:, :2, :2] = torch.stack((cos, -sin, sin, cos), dim=1).view(batch, 2, 2)
    # From pixels to coordinates from -1 to 1, whose units differ between the axes.
    extents = torch.tensor([float(n) for n in reversed(size_in)])
    linear = linear * (chosen.shrink or 1.0) * scale * extents / extents[:, None]
    shift = (2 * torch.tensor(SHIFT[:dim]) / extents).repeat(batch, 1)
    if name == RANDOM:
        shift[:, 0], shift[:, 1] = uniform(-0.2, 0.2), uniform(-0.2, 0.2)
    return torch.cat((linear, shift[:, :, None]), dim=2)
