"""What is computed: dtypes, shapes, maps, and the numbers that all providers get.

Images are waves of 8 pixels and more, as smooth as photographs are at the scale of pixels; the gradient of
the output is that of registration, the difference to the same picture a pixel and a half away. (In white
noise the gradient of theta is a sum of random signs, of which little is left but rounding.)

The derivative by a position jumps where the position is a whole number. Which side a sample there falls on
is rounding's choice, of fp64 too, and a few such samples would outweigh all other errors of the gradient of
theta. So samples nearer than 1/64 pixel get no gradient; at the identity, where all are, the gradient of
theta is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from perf.accuracy import implementations
from perf.measuring import maps

SIZES, QUICK_SIZES = (28, 224, 1024, 4096, 8192), (28, 224)
IDENTITY = "identity"
MAPS = (maps.RANDOM, IDENTITY)
AUTOCASTS: dict[torch.dtype, tuple[torch.dtype | None, ...]] = {
    torch.float32: (None, torch.bfloat16, torch.float16),
    torch.bfloat16: (None, torch.bfloat16),
    torch.float16: (None, torch.float16),
}
"""Of images and theta, which the pair takes in one dtype only: dtypes of autocast, None for without."""
IMAGES, PIXELS = 8, 2**20
"""Of a cell: enough matrices that no error is one matrix's luck; pixels that are interpreted in seconds."""
_WAVES, _PERIODS = 16, (8.0, 64.0)
_MOVED = (1.3, 0.7)
_MARGIN = 2.0**-6
_LARGEST_GRADIENT = 2.0**14  # of theta; fp16 ends at 65,504

Shape = tuple[int, int, int]
"""Images, height and width."""


class Case(NamedTuple):
    """Arguments, rounded to their dtype, and the results in fp64."""

    input: Tensor
    theta: Tensor
    grad: Tensor
    truth: implementations.Result


def short(dtype: torch.dtype) -> str:
    """``fp32``, ``bf16`` or ``fp16``."""
    return str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")


def shape_of(size: int) -> Shape:
    """Square images, of large ones a strip across."""
    return IMAGES, min(size, PIXELS // IMAGES // size), size


def make(dtype: torch.dtype, size: int, map_name: str, device: torch.device) -> Case:
    """The numbers of a cell. The largest absolute value of an image is 1, before rounding."""
    batch, *sides = shape_of(size)
    generator = torch.Generator().manual_seed(size)
    # Normalised as of a square of that size: along the strip, positions are those of the square.
    theta = torch.eye(2, 3).repeat(batch, 1, 1)
    if map_name != IDENTITY:
        theta = maps.matrices(map_name, batch, (size, size), generator)
    theta = theta.to(device, dtype)
    images = torch.stack([_picture(sides, generator, device) for _ in range(batch)])[:, None].to(dtype)
    exact = images.double(), theta.double()
    moved = exact[1].clone()
    moved[:, :, 2] += 2 * moved.new_tensor(_MOVED) / moved.new_tensor(sides[::-1])
    grad = implementations.pair_forward(*exact) - implementations.pair_forward(exact[0], moved)
    grad = torch.where(_jumps(*exact)[:, None] < _MARGIN, 0, grad) if map_name != IDENTITY else grad
    grad /= grad.abs().max()
    truth = implementations.pair(*exact, grad, None)
    # By a power of two, which no rounding notices.
    excess = truth.grad_theta.abs().max().item() / _LARGEST_GRADIENT
    grad = (grad / 2 ** max(math.ceil(math.log2(excess)), 0)).to(dtype)
    truth = implementations.pair(*exact, grad.double(), None)
    if map_name == IDENTITY:  # known better than fp64 computes it
        truth = implementations.Result(exact[0], grad.double(), truth.grad_theta)
    return Case(images, theta, grad, truth)


def _jumps(images: Tensor, theta: Tensor) -> Tensor:
    """How far each sample is from where its derivative by the position jumps, in pixels."""
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    positions = ((grid + 1) * grid.new_tensor(images.shape[:1:-1]) - 1) / 2
    return (positions - positions.round()).abs().amin(-1)


def _picture(sides: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Waves in random directions, in fp64."""
    y, x = (torch.arange(n, dtype=torch.float64, device=device) for n in sides)
    total = x.new_zeros(tuple(sides))
    low, high = _PERIODS
    for period, angle, phase in torch.rand(_WAVES, 3, generator=generator, dtype=torch.float64).tolist():
        frequency = 2 * math.pi / (low * (high / low) ** period)
        along = x * math.cos(math.pi * angle) + y[:, None] * math.sin(math.pi * angle)
        total += torch.cos(frequency * along + 2 * math.pi * phase)
    return total / total.abs().max()
