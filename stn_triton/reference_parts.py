"""Into which parts plain PyTorch divides its work, and how many samples antialiasing takes.

A part is what one grid describes: as many matrices for each image, with as many samples for each pixel. Each
call of PyTorch's sampler makes a gradient as large as its images. So the parts of an image go to the sampler
in batches with about as many samples as the image has pixels: the time is in proportion to the samples taken,
not to the images times the parts, and the memory to the images.
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

# Antialiasing takes at most so many samples per output pixel and axis; a shrink of up to 1/64 more than a
# whole number does not ask for another. As in kernels/coordinates.py.
MAX_SAMPLES = 64
SHRINK_TOLERANCE = 1 - 2.0**-6

# Of images or their results that are sampled together. In the cache of a core would be room for 2**17, but
# after each piece all threads wait for the last, which on a busy machine costs more than the cache gains.
_ELEMENTS_AT_ONCE = 2**22
# Memory for the position of a sample, in elements; each channel takes one more.
_ELEMENTS_OF_POSITION = 4
_SAMPLED_DTYPES = (torch.float32, torch.float64)
ALL = slice(None)


class Part(NamedTuple):
    """Output pixels that one grid can describe: as many for each image, as many samples for each pixel."""

    matrices: slice | Tensor
    """A range, or (images * count,) indices; those of an image after each other. ALL together with images."""
    count: int
    """Matrices per image."""
    samples: tuple[int, ...]
    """Per output pixel and axis, x first."""
    window: tuple[slice, ...] | None = None
    """Of the output, a range on each axis, x last; None for all of it."""

    @property
    def place(self) -> object:
        """The index of the pixels in a tensor like the output."""
        return self.matrices if self.window is None else (self.matrices, ALL, *self.window)


class Share(NamedTuple):
    """Images that are sampled together, and all their parts."""

    images: slice
    batches: list[list[Part]]
    """A call of a sampler for each."""


def samples_per_pixel(
    theta: Tensor, size_in: Sequence[int], size: Sequence[int], align_corners: bool
) -> Tensor:
    """Into how many samples antialiasing splits an output pixel: (M, D), x first.

    Along each output axis, the length in input pixels of a step of one output pixel, rounded up.
    """
    extents = [theta.new_tensor([n - align_corners for n in reversed(s)]) for s in (size_in, size)]
    dim = len(size)
    steps = theta[:, :dim, :dim] * extents[0][:, None] / extents[1].clamp(min=1)
    steps = torch.where(extents[1] > 0, steps, 0)
    counts = torch.ceil(steps.square().sum(1).sqrt() * SHRINK_TOLERANCE).clamp(1, MAX_SAMPLES)
    return torch.where(steps.isfinite().all(1), counts, 1).long()


def is_whole(shares: list[Share]) -> bool:
    """Whether one part is everything."""
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
    """All images at once where their matrices allow it; else image by image, so that no image is copied."""
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
    """Parts of the same images, divided further where they have more samples than should be there at once.

    That is judged for each image by itself: its gradients must not depend on the images beside it.
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
    """A part as parts of at most so many samples of an image, or of one pixel."""
    each = math.prod(part.samples)
    samples = math.prod(size) * each
    if each == 1 or part.count * samples <= most:  # without antialiasing it is no more than the output
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
    """How many images are sampled together, with so many samples per output pixel.

    PyTorch's sampler knows one layout of results, and computes coordinates of half precision in half
    precision: what must therefore be copied before or after is not there twice as a whole. Nor are samples.
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
    threads = torch.get_num_threads()  # each samples whole images
    return max(threads, int(images / share) // threads * threads)
