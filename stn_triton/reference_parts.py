"""The parts into which plain PyTorch divides its work, and the number of samples of antialiasing.

A part has one grid: each image has the same number of matrices, and each pixel the same number of samples.
Each call of PyTorch's sampler makes a gradient as large as its images. So the parts of an image go to the
sampler in batches with about as many samples as the image has pixels: then time grows with the number of
samples, not with images times parts, and memory with the images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stn_triton import bags
from stn_triton.contract import coordinate_dtype, memory_format
from stn_triton.options import Options

# Antialiasing takes at most so many samples per output pixel and axis. A step that exceeds a whole number of
# input pixels by at most 1/64 of itself takes no further sample. As in kernels/coordinates.py.
MAX_SAMPLES = 64
SHRINK_TOLERANCE = 1 - 2.0**-6

# Elements of images or of their results that are sampled together. The cache of a core has room for 2**17,
# but all threads wait for the slowest after each piece, which costs more on a busy machine.
_ELEMENTS_AT_ONCE = 2**22
# Elements of memory for the position of a sample; each channel takes one more.
_ELEMENTS_OF_POSITION = 4
_SAMPLED_DTYPES = (torch.float32, torch.float64)
ALL = slice(None)


class Part(NamedTuple):
    """Output pixels with one grid: equally many per image, with equally many samples per pixel."""

    matrices: slice | Tensor
    """A range, or indices (images * count,), grouped by image; ALL for the matrices of all images."""
    count: int
    """Matrices per image."""
    samples: tuple[int, ...]
    """Number per output pixel and axis, x first."""
    window: tuple[slice, ...] | None = None
    """The range of the output on each axis, x last; None for all of it."""

    @property
    def place(self) -> object:
        """The index of the pixels in a tensor like the output."""
        return self.matrices if self.window is None else (self.matrices, ALL, *self.window)


class Share(NamedTuple):
    """Images that are sampled together, and all their parts."""

    images: slice
    batches: list[list[Part]]
    """Parts, grouped by call of the sampler."""


def samples_per_pixel(
    theta: Tensor, size_in: Sequence[int], size: Sequence[int], align_corners: bool
) -> Tensor:
    """Number of samples of antialiasing per output pixel and axis: (M, D), x first.

    The number is the length of an output step along the axis in input pixels, rounded up.
    """
    extents = [theta.new_tensor([n - align_corners for n in reversed(s)]) for s in (size_in, size)]
    dim = len(size)
    steps = theta[:, :dim, :dim] * extents[0][:, None] / extents[1].clamp(min=1)
    steps = torch.where(extents[1] > 0, steps, 0)
    counts = torch.ceil(steps.square().sum(1).sqrt() * SHRINK_TOLERANCE).clamp(1, MAX_SAMPLES)
    return torch.where(steps.isfinite().all(1), counts, 1).long()


def is_whole(shares: list[Share]) -> bool:
    """Whether a single part covers everything."""
    parts = [part for share in shares for batch in share.batches for part in batch]
    return len(parts) == 1 and parts[0].matrices is ALL


def shares_of(
    input: Tensor,
    theta: Tensor,
    image_index: Tensor | None,
    size: Sequence[int],
    options: Options,
    is_backward: bool = False,
) -> list[Share]:
    """Divide the images. Those with unequal matrices or samples are taken one by one: none is copied."""
    n, m, dim = input.shape[0], theta.shape[0], len(size)
    if image_index is not None and m > 0:
        least, most = (number.item() for number in image_index.aminmax())
        if least < 0 or most >= n:
            wrong = least if least < 0 else most
            raise ValueError(f"image_index must name images 0 to {n - 1} of input, got {wrong}")
    if m == 0 or n == 0:
        return []
    samples = None
    if options.antialias:
        dtype = coordinate_dtype(input.dtype)
        samples = samples_per_pixel(theta.to(dtype), input.shape[2:], size, options.align_corners)
    if image_index is None and (samples is None or (samples == samples[0]).all()):
        each = (1,) * dim if samples is None else tuple(samples[0].tolist())
        count = m // n
        step = images_at_once(input, size, m, options, is_backward, math.prod(each))
        if step >= n:
            return [Share(ALL, _batches([Part(ALL, count, each)], input, m, size))]
        return [
            Share(
                slice(i, i + step),
                _batches([Part(slice(i * count, (i + step) * count), count, each)], input, m, size),
            )
            for i in range(0, n, step)
        ]
    owners = torch.arange(m) // (m // n) if image_index is None else image_index
    keys = owners[:, None] if samples is None else torch.cat((owners[:, None], samples), 1)
    groups: dict[tuple[int, ...], list[int]] = {}
    for matrix, key in enumerate(keys.tolist()):
        groups.setdefault(tuple(key), []).append(matrix)
    shares = []
    for image, keys in itertools.groupby(sorted(groups), lambda key: key[0]):
        own = [(groups[key], key[1:] or (1,) * dim) for key in keys]
        parts = [Part(torch.tensor(matrices), len(matrices), each) for matrices, each in own]
        shares.append(Share(slice(image, image + 1), _batches(parts, input, m, size)))
    return shares


def _batches(parts: list[Part], input: Tensor, matrices: int, size: Sequence[int]) -> list[list[Part]]:
    """Group parts of the same images, dividing those with more samples than should be in memory at once.

    The limit is per image, because gradients of an image must not depend on other images.
    """
    elements = input.shape[1] + _ELEMENTS_OF_POSITION
    most = max(_ELEMENTS_AT_ONCE, math.prod(input.shape[1:])) // elements
    batches, room = [], 0
    for whole in parts:
        for part in _divided(whole, matrices, size, most):
            sides = size if part.window is None else [side.stop - side.start for side in part.window]
            taken = part.count * math.prod(sides) * math.prod(part.samples)
            if not batches or taken > room:
                batches.append([])
                room = most
            batches[-1].append(part)
            room -= taken
    return batches


def _divided(part: Part, matrices: int, size: Sequence[int], most: int) -> list[Part]:
    """Divide a part into parts of at most ``most`` samples per image, or of one pixel."""
    each = math.prod(part.samples)
    samples = math.prod(size) * each
    if each == 1 or part.count * samples <= most:  # without antialiasing samples are as many as output pixels
        return [part]
    chunks = torch.arange(matrices)[part.matrices].view(-1, part.count).split(max(most // samples, 1), 1)
    parts = [part._replace(matrices=chunk.flatten(), count=chunk.shape[1]) for chunk in chunks]
    if samples <= most:
        return parts
    room, ranges = max(most // each, 1), []
    for n in reversed(size):
        side = min(n, max(room, 1))
        room //= side
        ranges.insert(0, [slice(i, min(i + side, n)) for i in range(0, n, side)])
    return [piece._replace(window=window) for piece in parts for window in itertools.product(*ranges)]


def images_at_once(
    input: Tensor, size: Sequence[int], matrices: int, options: Options, is_backward: bool, samples: int = 1
) -> int:
    """Number of images that are sampled together; ``samples`` is the number per output pixel.

    PyTorch's sampler has one layout of results, and computes coordinates of half precision in half precision.
    So images or results may have to be copied. Dividing the images keeps copies and samples small.
    """
    images, pixels = input.shape[0], math.prod(size)
    share = max(input.numel(), matrices * pixels * samples * input.shape[1]) / _ELEMENTS_AT_ONCE
    if share < 4:
        return images
    is_copied = samples > 1 or input.dtype not in _SAMPLED_DTYPES
    if memory_format(input, size) != torch.contiguous_format:
        is_copied |= is_backward or not bags.suits(input, input.dtype, pixels, options)
    if not is_copied:
        return images
    threads = torch.get_num_threads()  # each thread samples whole images
    return max(threads, int(images / share) // threads * threads)
