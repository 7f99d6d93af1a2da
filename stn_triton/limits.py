"""How large tensors may be: limits of exact coordinates and of the counts in kernels.

Kernels use 64-bit offsets of images and channels, and of pixels too in a large plane, so they do not limit
the number of elements. They count programs, channels and pixels of an axis in 32 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_EXTENT = 2**24
"""Largest number of pixels along an axis. Beyond it, centred coordinates are not exact in fp32: neighbours
would become one pixel. Antialiasing counts up to 64 times as many samples."""
LARGEST_EXTENT_FP64 = 2**30
"""Largest number of pixels along an axis in fp64: a first pixel plus a count must stay below 2**31."""
MOST_CHANNELS = 2**31 - 1
MOST_ELEMENTS = 2**56
"""Largest number of output elements. Beyond it no address exists."""


def largest_extent(dtype: torch.dtype, antialias: bool) -> int:
    """Largest number of pixels on an axis of the input or the output, for an input of this dtype."""
    return LARGEST_EXTENT_FP64 if dtype == torch.float64 and not antialias else LARGEST_EXTENT


def check_size(size: Sequence[int], dtype: torch.dtype, antialias: bool) -> None:
    """Raise ValueError if ``size`` has an axis that is too long."""
    largest = largest_extent(dtype, antialias)
    if max(size) > largest:
        raise ValueError(
            f"size must be at most {_power(largest)} on each axis{_reason(largest, antialias)}, "
            f"got {tuple(size)}"
        )


def check(input: Tensor, maps: int, size: Sequence[int], antialias: bool) -> None:
    """Raise ValueError if an input (N, C, ...) or an output (maps, C, *size) is too large.

    Every call of an operator is checked, in the backward too: an operator that is called directly has no
    forward before it. Kernels would count an axis that is too long beyond 32 bits.
    """
    shape = input.shape
    sizes = input.numel(), maps * shape[1] * math.prod(size)
    if min(sizes) > 0 and max(sizes) <= LARGEST_EXTENT:  # then each of their factors is small too
        return
    largest = largest_extent(input.dtype, antialias)
    if max(shape[2:]) > largest:
        raise ValueError(
            f"input must have at most {_power(largest)} pixels on each axis{_reason(largest, antialias)}, "
            f"got shape {tuple(shape)}"
        )
    if max(size) > largest:
        check_size(size, input.dtype, antialias)
    channels = shape[1]
    if channels > MOST_CHANNELS:
        raise ValueError(f"input must have fewer than 2**31 channels, got shape {tuple(shape)}")
    if sizes[1] > MOST_ELEMENTS:
        raise ValueError(
            f"size must give an output of at most {_power(MOST_ELEMENTS)} elements, got {tuple(size)} for "
            f"{maps} maps and {channels} channels"
        )


def check_known(input: Tensor, maps: int, size: Sequence[int], antialias: bool) -> None:
    """Call `check` unless a size is symbolic. Symbolic sizes are checked when the compiled program runs."""
    if not any(isinstance(number, torch.SymInt) for number in (*input.shape, maps, *size)):
        check(input, maps, size, antialias)


def _power(number: int) -> str:
    return f"2**{number.bit_length() - 1}"


def _reason(largest: int, antialias: bool) -> str:
    if largest == LARGEST_EXTENT_FP64:
        return ""
    if antialias:
        return " with antialias"
    return (
        f" (fp32 coordinates cannot distinguish more; an fp64 input may have {_power(LARGEST_EXTENT_FP64)})"
    )
