"""Dtypes and memory formats that every implementation of the operator uses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stn_triton.options import LABEL_DTYPES

ROUNDING = 16
"""Sums of the weights of taps outside the image count as zero up to this many eps of the dtype."""


def coordinate_dtype(input_dtype: torch.dtype) -> torch.dtype:
    """The dtype of coordinates, weights and sums: fp64 for fp64 images, fp32 for all others."""
    return torch.float64 if input_dtype == torch.float64 else torch.float32


def sum_dtype(input_dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values of images are added. Labels are copied, in their own dtype."""
    if input_dtype == torch.bool:  # bool tensors cannot be subtracted
        return torch.uint8
    return input_dtype if input_dtype in LABEL_DTYPES else coordinate_dtype(input_dtype)


def memory_format(input: Tensor, size: Sequence[int]) -> torch.memory_format:
    """The memory format of a result of ``size``: channels_last if the channels of ``input`` lie adjacent.

    Only strides count, so that slices of a channels_last tensor are channels_last too. A tensor with one
    channel, or one pixel, has both formats and counts as contiguous.
    """
    _, channels, *sizes = input.shape
    _, stride_c, *strides = input.stride()
    if channels < 2 or stride_c == 0 or math.prod(size) == 1:
        return torch.contiguous_format
    others = [stride for n, stride in zip(sizes, strides, strict=True) if n > 1]
    if not others or any(stride <= stride_c for stride in others):
        return torch.contiguous_format
    return torch.channels_last if len(sizes) == 2 else torch.channels_last_3d
