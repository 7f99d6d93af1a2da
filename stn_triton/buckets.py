"""Buckets of launches that share block sizes: by kernel, layout, dtype, channels and pixels."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import torch

from stn_triton.options import Options

LANES_C = 16
"""Least number of channels for lanes to run over channels, if these lie side by side in memory."""


class Bucket(NamedTuple):
    """Launches that share a configuration. Without rounding, every image size would need a search."""

    kernel: str
    """A name in ``kernel_specs.SPECS``: forward, backward (a gather), scatter and so on."""
    variant: str
    """The options that change compiled code, such as 2d-bilinear-zeros, see ``variant_of``."""
    layout: str
    """nchw, channels_last, or channels_last_16 (128-bit accesses) for a multiple of 16 channels."""
    dtype: str
    """Dtype of the image, such as float32."""
    channels: int
    """Number of channels, exact up to 4, else rounded up to a power of two, at most 256."""
    pixels: int
    """Pixels of one plane that is tiled, rounded up to a power of 8 from 64 to 2^21."""
    planes: int
    """Images times channels, rounded up to a power of 8 from 8 to 2^18. Few planes need small tiles."""

    def name(self) -> str:
        """The bucket as a key of a table."""
        names = (self.kernel, self.variant, self.layout, self.dtype)
        return "/".join((*names, f"c{self.channels}", f"p{self.pixels}", f"n{self.planes}"))

    @classmethod
    def parse(cls, name: str) -> Bucket | None:
        """The bucket with this name; None if the name is no bucket's."""
        match = re.fullmatch(r"(\w+)/([\w-]+)/(nchw|channels_last(?:_16)?)/(\w+)/c(\d+)/p(\d+)/n(\d+)", name)
        return match and cls(*match.groups()[:4], *map(int, match.groups()[4:]))

    def is_gather(self) -> bool:
        """Whether a program owns input pixels and searches the output pixels that sample them."""
        return self.kernel.startswith("backward")

    def is_heavy(self) -> bool:
        """Whether a thread keeps so much per pixel that it should have fewer channels."""
        heavy = {"3d", "bicubic", "reflection", "wrap", "projective", "tangent"}
        return self.is_exact() or bool(heavy & set(self.variant.split("-")))

    def is_exact(self) -> bool:
        """Whether the kernel adds whole numbers, two of 64 bits for each value."""
        return self.kernel.startswith("exact")

    def has_steps(self) -> bool:
        """Whether a program may go through several blocks of channels one after the other.

        A gather must list the output pixels of its tile for that, see `kernels/backward.py`.
        """
        flags = set(self.variant.split("-"))
        if self.is_gather():
            return not (self.is_heavy() or flags & {"antialias", "many"})
        return self.kernel != "fill" and not flags & {"antialias", "tangent"}

    def lane(self) -> int:
        """Channels that one lane reads at once."""
        is_wide = self.layout == "channels_last_16" and not self.is_exact()  # exact: too few registers
        return 16 // getattr(torch, self.dtype).itemsize if is_wide else 1


@functools.lru_cache(maxsize=1024)
def variant_of(dim: int, projective: bool, many: bool, tangent: bool, options: Options) -> str:
    """Name of the options that change compiled code much; align_corners changes only a few scalars."""
    flags = {
        "projective": projective,
        "spline": bool(options.points),
        "many": many,
        "antialias": options.antialias,
        "tangent": tangent,
    }
    names = (f"{dim}d", options.mode, options.padding_mode)
    return "-".join((*names, *(name for name, is_set in flags.items() if is_set)))


@functools.lru_cache(maxsize=1024)
def bucket_of(
    kernel: str, variant: str, channels_last: bool, dtype: torch.dtype, n: int, c: int, pixels: int
) -> Bucket:
    """The bucket of a launch over n images of c channels, with this number of pixels per channel."""
    layout = ("channels_last_16" if c % 16 == 0 else "channels_last") if channels_last else "nchw"
    name = str(dtype).removeprefix("torch.")
    sizes = c if c <= 4 else _up(c, 1, 1, 256), _up(pixels, 3, 64, 2**21), _up(n * c, 3, 8, 2**18)
    return Bucket(kernel, variant, layout, name, *sizes)


def _up(value: int, step: int, least: int, most: int) -> int:
    exponent = max(value - 1, 0).bit_length()
    return min(max(2 ** (-(-exponent // step) * step), least), most)
