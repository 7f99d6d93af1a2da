"""How large tensors may be: what coordinates tell apart and kernels can count.

Kernels find an image and a channel by 64-bit offsets, and a pixel too where a plane needs it, so the number
of elements has no limit of its own. They count programs, channels and pixels of an axis in 32 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_EXTENT = 2**24
"""Pixels along an axis. Centred coordinates of more are not exact in fp32: neighbours would become one
pixel. Antialiasing counts up to 64 times as many samples."""
LARGEST_EXTENT_FP64 = 2**30
"""The same for fp64, where a first pixel plus a count of pixels must stay below 2**31."""
MOST_CHANNELS = 2**31 - 1
MOST_ELEMENTS = 2**56
"""Of an output. More have no address, whatever else a call needs on the way."""


def largest_extent(dtype: torch.dtype, antialias: bool) -> int:
    """Pixels that an axis of the input or the output may have, for an input of this dtype."""
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

    Each call of an operator asks this, backwards too: who calls one directly has no forward that asked, and
    an axis that is too long would be counted beyond 32 bits.
    """
    shape = input.shape
    sizes = input.numel(), maps * shape[1] * math.prod(size)
    if min(sizes) > 0 and max(sizes) <= LARGEST_EXTENT:  # then so is each of their factors
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
    """The same for a compiler: sizes that it does not know pass, and are checked when its program runs."""
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
        f" (fp32 coordinates tell no more pixels apart; an fp64 input may have {_power(LARGEST_EXTENT_FP64)})"
    )
