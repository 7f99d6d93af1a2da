"""Pixels and weights of positions in plain PyTorch, as in ``kernels/taps.py``.

PyTorch's own samplers do most of the work on a CPU. This module does what they cannot, pixel by pixel: second
derivatives (``reference_tangent``), and a padding that they do not have.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stn_triton.options import Options

_Axis = tuple[Tensor, Tensor, Tensor, Tensor]
"""A tap on one axis: its pixel, its weight, and the weight's first and second derivative by the position."""


class Tap(NamedTuple):
    """One of the pixels that each position is interpolated from; tensors are (images, positions)."""

    index: Tensor
    """Index of the pixel in the flattened image."""
    inside: Tensor
    axes: tuple[tuple[Tensor, Tensor, Tensor], ...]
    """Weight on each axis, x first, with its first and second derivative by the position."""

    def product(self, orders: dict[int, int]) -> Tensor:
        """Product over axes of derivatives of the weight. ``orders`` are by axis; the default is 0."""
        return math.prod(numbers[orders.get(k, 0)] for k, numbers in enumerate(self.axes))

    def pick(self, content: Tensor) -> Tensor:
        """Values of the tap's pixels in flattened images, 0 outside: (images, C, positions)."""
        picked = content.gather(2, self.index_like(content))
        return torch.where(self.inside[:, None], picked, 0)

    def index_like(self, content: Tensor) -> Tensor:
        """The index, expanded to all channels of ``content``."""
        return self.index[:, None].expand(-1, content.shape[1], -1)


def sampled(images: Tensor, positions: Tensor, lost: Tensor | None, options: Options) -> Tensor:
    """Sample images (N, C, ...) at normalised, finite positions (N, *size, D): (N, C, *size).

    Coordinates where ``lost``, (N, *size, D), is True sample the first pixel.
    """
    content, total = images.flatten(2), 0
    for tap in taps(positions, images.shape[2:], options, lost):
        weight = tap.product({})
        seen = tap._replace(inside=tap.inside & (weight != 0))
        total = total + seen.pick(content) * weight[:, None].to(content.dtype)
    return total.view(*images.shape[:2], *positions.shape[1:-1])


def gradients(
    grad_output: Tensor,
    images: Tensor,
    positions: Tensor,
    lost: Tensor | None,
    options: Options,
    needs_images: bool,
) -> tuple[Tensor | None, Tensor]:
    """Gradients of ``sampled`` for the images, None unless ``needs_images``, and for the positions."""
    content, gradient = images.flatten(2), grad_output.flatten(2)
    grad_images = torch.zeros_like(content) if needs_images else None
    along = [0] * positions.shape[-1]
    for tap in taps(positions, images.shape[2:], options, lost):
        if needs_images:
            weight = (tap.product({}) * tap.inside)[:, None]
            share = torch.where(weight != 0, gradient, 0) * weight
            grad_images.scatter_add_(2, tap.index_like(share), share)
        dot = (gradient * tap.pick(content)).sum(1)
        for k in range(len(along)):
            slope = tap.product({k: 1})
            along[k] = along[k] + torch.where(slope != 0, dot, 0) * slope
    grad_positions = torch.stack(along, -1) * scale_of(images.shape[2:], options).to(positions.dtype)
    return None if grad_images is None else grad_images.view(images.shape), grad_positions.view_as(positions)


def scale_of(size_in: Sequence[int], options: Options) -> Tensor:
    """Pixels per normalised unit: (D,), x first."""
    return torch.tensor([n - options.align_corners for n in reversed(size_in)], dtype=torch.float64) / 2


def taps(
    positions: Tensor, size_in: Sequence[int], options: Options, lost: Tensor | None = None
) -> Iterator[Tap]:
    """All taps of positions (images, ..., D)."""
    images, dim = len(positions), len(size_in)
    sizes = tuple(reversed(size_in))
    # Computed as in PyTorch's sampler, so that kinks lie at the same positions.
    offset = 0.0 if options.align_corners else 0.5
    scale = scale_of(size_in, options).to(positions.dtype)
    pixels = ((positions + 1) * scale - offset).reshape(images, -1, dim)
    lost = None if lost is None else lost.reshape(images, -1, dim)
    axes, stride = [], 1
    for k, n in enumerate(sizes):
        found = []
        for pixel, *numbers in _axis_taps(pixels[..., k], n, options, None if lost is None else lost[..., k]):
            inside = (pixel >= 0) & (pixel < n)
            found.append((pixel.clamp(0, n - 1).long() * stride, inside, tuple(numbers)))
        axes.append(found)
        stride *= n
    for chosen in itertools.product(*axes):
        indices, insides, numbers = zip(*chosen, strict=True)
        yield Tap(sum(indices), functools.reduce(torch.bitwise_and, insides), numbers)


def _axis_taps(position: Tensor, n: int, options: Options, lost: Tensor | None) -> list[_Axis]:
    position, direction = _padded(position, n, options)
    if lost is not None:
        position, direction = position.masked_fill(lost, 0), direction.masked_fill(lost, 0)
    cell = position.floor()
    f = position - cell
    zero = torch.zeros_like(f)
    if options.mode == "nearest":  # half to even, as counted from the first pixel
        is_odd = _padded_pixel(cell, n, options).remainder(2) == 1
        up = (f > 0.5) | ((f == 0.5) & is_odd)
        return [(_padded_pixel(cell + up, n, options), zero + 1, zero, zero)]
    if options.mode == "bilinear":
        weights = (1 - f, -direction, zero), (f, direction, zero)
        return [(_padded_pixel(cell + i, n, options), *w) for i, w in enumerate(weights)]
    # Keys' kernel with A = -0.75 as in PyTorch: weights, factored at their zeros, and two derivatives.
    g = 1 - f
    found = (
        (-0.75 * f * g * g, (2.25 * f - 0.75) * g, 3.0 - 4.5 * f),
        (g * ((1 - 1.25 * f) * f + 1), (3.75 * f - 4.5) * f, 7.5 * f - 4.5),
        (f * ((1 - 1.25 * g) * g + 1), (4.5 - 3.75 * g) * g, 7.5 * g - 4.5),
        (-0.75 * f * g * f, (0.75 - 2.25 * g) * f, 3.0 - 4.5 * g),
    )
    return [
        (_padded_pixel(cell + (i - 1), n, options), weight, direction * slope, direction * direction * bend)
        for i, (weight, slope, bend) in enumerate(found)
    ]


def _padded(position: Tensor, n: int, options: Options) -> tuple[Tensor, Tensor]:
    """The position after padding, and its derivative by the position before: 1, -1 or 0."""
    direction = torch.ones_like(position)
    if options.padding_mode == "reflection":
        position, direction = _reflected(position, n, options)
    if options.padding_mode in ("border", "reflection") and options.mode != "bicubic":
        direction = torch.where((position > 0) & (position < n - 1), direction, 0)
        position = position.clamp(0, n - 1)
    elif options.padding_mode == "border":
        # Where all taps are the edge pixel, their slopes would cancel only up to rounding.
        direction = torch.where((position >= -1) & (position < n), direction, 0)
    return position, direction


def _padded_pixel(pixel: Tensor, n: int, options: Options) -> Tensor:
    """The pixel that is read for a tap of a padded position."""
    if options.padding_mode == "wrap":
        return pixel.remainder(n)
    if options.mode == "bicubic":
        if options.padding_mode == "reflection":
            pixel, _ = _reflected(pixel, n, options)
        if options.padding_mode in ("border", "reflection"):
            pixel = pixel.clamp(0, n - 1)
    return pixel


def _reflected(position: Tensor, n: int, options: Options) -> tuple[Tensor, Tensor]:
    """The position reflected into the image, and its direction there, 1 or -1."""
    first, span = (0.0, n - 1) if options.align_corners else (-0.5, n)
    if span == 0:
        return torch.zeros_like(position), torch.zeros_like(position)
    above = position - first
    fold = torch.floor(above / span)
    rest = above - fold * span
    odd = fold.remainder(2) == 1
    return first + torch.where(odd, span - rest, rest), torch.where(odd, -1.0, 1.0).to(position.dtype)
