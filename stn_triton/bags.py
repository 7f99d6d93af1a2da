"""Bilinear samples of channels_last images on a CPU, several times as fast as PyTorch's sampler.

Each output pixel is a weighted sum of 2^D input pixels, which are rows of a matrix (pixels, C).
``torch.embedding_bag`` computes such sums in one pass, with a result in channels_last. Positions, weights and
padding are those of PyTorch's sampler, the order of sums is not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stn_triton.contract import memory_format
from stn_triton.options import Options

# Least numbers of channels and of elements per output with which this is faster than PyTorch's sampler.
_CHANNELS = 32
_ELEMENTS = 2**17


def suits(images: Tensor, dtype: torch.dtype, pixels: int, options: Options) -> bool:
    """Whether ``sampled`` supports the options and is faster; an output has so many ``pixels``."""
    return (
        images.shape[1] >= _CHANNELS
        and pixels * images.shape[1] >= _ELEMENTS
        and dtype == torch.float32
        and options.mode == "bilinear"
        and not options.padding.repeats
        and memory_format(images, images.shape[2:]) != torch.contiguous_format
    )


def sampled(images: Tensor, positions: Tensor, options: Options) -> Tensor:
    """Sample channels_last images (N, C, ...) at normalised, finite positions (N, *size, D)."""
    n, channels, *size_in = images.shape
    size = positions.shape[1:-1]
    kind = (
        torch.int32 if n * max(math.prod(size_in), 2 ** len(size) * math.prod(size)) < 2**31 else torch.int64
    )
    image = torch.arange(n, dtype=kind).view(-1, *[1] * len(size))
    taps = [(image, None)]
    seen = None
    for axis, extent in enumerate(size_in):
        pixels, weights, is_seen = _axis_taps(positions[..., len(size_in) - 1 - axis], extent, options)
        seen = is_seen if seen is None else seen & is_seen
        taps = [
            (index * extent + pixel.to(kind), own if weight is None else weight * own)
            for index, weight in taps
            for pixel, own in zip(pixels, weights, strict=True)
        ]
    index, weight = (torch.stack(planes, -1).flatten(0, -2) for planes in zip(*taps, strict=True))
    starts = torch.arange(0, index.numel(), len(taps), dtype=kind)
    rows = images.movedim(1, -1).reshape(-1, channels)
    output = torch.embedding_bag(rows, index.flatten(), starts, False, 0, False, weight.flatten())[0]
    unseen = (~seen.flatten()).nonzero().squeeze(1)
    output.index_fill_(0, unseen, 0)  # zero times NaN or infinity is NaN
    # A tensor of its own, because a view cannot be an operator's result.
    strides = torch.empty((n, *size, channels), device="meta").movedim(-1, 1).stride()
    return output.new_empty((0,)).set_(output.untyped_storage(), 0, (n, channels, *size), strides)


def _axis_taps(
    position: Tensor, extent: int, options: Options
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """The two pixels of a position on one axis, their weights, and whether any of both lies inside.

    If only one lies inside, it is returned twice, each with half its weight. A second pixel with a weight of
    zero would give NaN if it were infinite.
    """
    if options.align_corners:
        position = (position + 1) * ((extent - 1) / 2)
    else:
        position = (position + 1) * (extent / 2) - 0.5
    if options.padding_mode == "border":
        position = position.clamp(0, extent - 1)
    cell = position.floor()
    fraction = position - cell
    rest = 1 - fraction
    is_before, is_last = cell < 0, cell > extent - 2
    half = torch.where(is_before, fraction, rest) / 2
    has_one = is_before | is_last
    weights = torch.where(has_one, half, rest), torch.where(has_one, half, fraction)
    pixels = cell.clamp(0, extent - 1), (cell + 1).clamp(0, extent - 1)
    return pixels, weights, (cell >= -1) & (cell < extent)
