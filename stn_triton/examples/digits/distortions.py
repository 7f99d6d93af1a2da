"""The distortions of the paper's Table 1 (Jaderberg et al. 2015, section 4.1 and appendix), on any frame.

The paper's lengths are in pixels of MNIST's 28; here they are shares of the frame, the undistorted image.
Random numbers come from a generator, and one operator call distorts a batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from stn_triton import affine_grid_sample, perspective_grid_sample, thin_plate_spline_grid_sample

R_ANGLE = 90.0
RTS_ANGLE, RTS_SCALE = 45.0, (0.7, 1.2)
SMALLER = (0.75, 1.0)
"""Range of scales in P and E."""
P_CORNER = 5 / 28
"""Standard deviation of a corner's shift, in frames; shifts are at most twice as large."""
E_POINT, E_POINTS = 1.5 / 28, 4
"""Standard deviation of a control point's shift, in frames, and control points per side."""
FRAGMENTS, FRAGMENT = 6, 6 / 28
"""Number of fragments of other digits in the clutter, and their side in frames."""


@dataclass(frozen=True)
class Distortion:
    """One way to distort digits."""

    title: str
    """Description for readers."""
    canvas: float
    """Side of the distorted image, in frames."""
    draw: Callable[[Tensor, int, Generator], Tensor]
    """Function of frames (n, 1, f, f), canvas size and generator; returns (n, 1, size, size)."""

    def size(self, frame: int) -> int:
        """Side of the canvas in pixels, for a frame of ``frame`` pixels."""
        return round(self.canvas * frame)

    def __call__(self, frames: Tensor, generator: Generator) -> Tensor:
        """Distort each image of (n, 1, f, f) differently."""
        return self.draw(frames, self.size(frames.shape[-1]), generator)


def generator(*key: int | str) -> Generator:
    """Make a random generator for a key, the same on every machine and in every order of runs."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def place(frames: Tensor, size: int, angle: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Place frames in a canvas: turned counterclockwise, scaled and shifted.

    Args:
        frames: (n, 1, f, f).
        size: side of the canvas, in pixels of the frame.
        angle: (n,), degrees.
        scale: (n,), 1 keeps the frame's size.
        shift: (n, 2), pixels to the right and down, from the middle.

    Returns:
        (n, 1, size, size).
    """
    zoom, angle = size / frames.shape[-1] / scale, angle * (math.pi / 180)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    turn = torch.stack((torch.stack((cos, -sin), 1), torch.stack((sin, cos), 1)), 1)
    theta = torch.cat((turn, -turn @ (shift[..., None] * (2 / size))), 2)
    return affine_grid_sample(frames, theta, size)


def homography(corners: Tensor) -> Tensor:
    """Find matrices (n, 3, 3) that map ``corners`` (n, 4, 2) to (-1, -1), (1, -1), (-1, 1), (1, 1)."""
    target = torch.tensor([[-1.0, -1], [1, -1], [-1, 1], [1, 1]], dtype=corners.dtype).expand_as(corners)
    from_ = torch.cat((corners, torch.ones_like(corners[..., :1])), -1)
    # Two equations per corner, (row of x) p - x' (row of z) p = 0, for eight unknowns; the ninth entry is 1.
    zero = torch.zeros_like(from_)
    equations = torch.cat(
        (
            torch.cat((from_, zero, -target[..., :1] * corners), -1),
            torch.cat((zero, from_, -target[..., 1:] * corners), -1),
        ),
        1,
    )
    right = torch.cat((target[..., 0], target[..., 1]), 1)
    solution = torch.linalg.solve(equations, right[..., None])[..., 0]
    return torch.cat((solution, torch.ones_like(solution[:, :1])), 1).unflatten(1, (3, 3))


def _uniform(low: float, high: float, shape: tuple[int, ...], random: Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=random)


def _anywhere(frames: Tensor, size: int, scale: Tensor, random: Generator) -> Tensor:
    """Draw shifts, in pixels, that keep the scaled frames within the canvas."""
    room = (size - scale * frames.shape[-1]).clamp(min=0) / 2
    return room[:, None] * _uniform(-1, 1, (len(frames), 2), random)


def _upright(frames: Tensor, size: int, random: Generator) -> Tensor:
    one = torch.ones(len(frames))
    return place(frames, size, 0 * one, one, torch.zeros(len(frames), 2))


def _rotated(frames: Tensor, size: int, random: Generator) -> Tensor:
    n = len(frames)
    angle = _uniform(-R_ANGLE, R_ANGLE, (n,), random)
    return place(frames, size, angle, torch.ones(n), torch.zeros(n, 2))


def _moved(frames: Tensor, size: int, random: Generator) -> Tensor:
    n = len(frames)
    angle, scale = _uniform(-RTS_ANGLE, RTS_ANGLE, (n,), random), _uniform(*RTS_SCALE, (n,), random)
    return place(frames, size, angle, scale, _anywhere(frames, size, scale, random))


def _projected(frames: Tensor, size: int, random: Generator) -> Tensor:
    n = len(frames)
    scale = _uniform(*SMALLER, (n, 1, 1), random)
    corners = torch.tensor([[-1.0, -1], [1, -1], [-1, 1], [1, 1]]).expand(n, 4, 2)
    noise = torch.randn((n, 4, 2), generator=random).clamp(-2, 2) * (2 * P_CORNER)
    return perspective_grid_sample(frames, homography(scale * (corners + noise)), size)


def _elastic(frames: Tensor, size: int, random: Generator) -> Tensor:
    n = len(frames)
    grow = 1 / _uniform(*SMALLER, (n, 1, 1), random)
    side = torch.linspace(-1, 1, E_POINTS)
    points = torch.cartesian_prod(side, side).flip(1)
    noise = torch.randn((n, E_POINTS**2, 2), generator=random) * (2 * E_POINT)
    # A spline reproduces linear maps exactly, so the image is enlarged exactly.
    return thin_plate_spline_grid_sample(frames, (grow - 1) * points + noise, size)


def _cluttered(frames: Tensor, size: int, random: Generator) -> Tensor:
    n, frame = len(frames), frames.shape[-1]
    one = torch.ones(n)
    canvas = place(frames, size, 0 * one, one, _anywhere(frames, size, one, random))
    side = round(FRAGMENT * frame)
    # A fragment is a square of whole pixels from anywhere in the frame of another digit of the batch.
    owner = (torch.arange(n)[:, None] + torch.randint(1, max(n, 2), (n, FRAGMENTS), generator=random)) % n
    corner = torch.randint(frame - side + 1, (n, FRAGMENTS, 2), generator=random)
    to = torch.randint(size - side + 1, (n, FRAGMENTS, 2), generator=random)
    step = torch.arange(side)
    rows, columns = corner[..., 1, None] + step, corner[..., 0, None] + step
    ink = frames[owner[..., None, None], 0, rows[..., None], columns[..., None, :]]
    at = (to[..., 1, None] + step)[..., None] * size + (to[..., 0, None] + step)[..., None, :]
    flat = canvas.flatten(1).scatter_reduce_(1, at.flatten(1), ink.flatten(1), "amax")
    return flat.view_as(canvas)


DISTORTIONS = {
    "R": Distortion(f"rotated within ±{R_ANGLE:g} degrees", 1.0, _rotated),
    "RTS": Distortion(
        f"rotated ±{RTS_ANGLE:g} degrees, scaled {RTS_SCALE[0]:g} to {RTS_SCALE[1]:g}, placed anywhere",
        1.5,
        _moved,
    ),
    "P": Distortion("projected: scaled 0.75 to 1, corners moved", 1.0, _projected),
    "E": Distortion("elastic: scaled 0.75 to 1, bent by a thin plate spline", 1.0, _elastic),
    "TC": Distortion(f"placed anywhere, among {FRAGMENTS} fragments of other digits", 15 / 7, _cluttered),
    "U": Distortion("upright, in the canvas of R", 1.0, _upright),
    "UL": Distortion("upright in the middle of the canvas of RTS", 1.5, _upright),
}
"""Distortions by name; the last two are for the comparison of invariances."""
