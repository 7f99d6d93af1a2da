"""Conversion of ``fill_value``, a number or one per channel in any form, to a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stn_triton import constants, contract, sharding, validation
from stn_triton.options import INT_DTYPES, LABEL_DTYPES
from stn_triton.plain import is_sequence, plain

_numbers = constants.numbers_of("fill_value")


def fill_values(fill_value: Any, padding_mode: str, input: Tensor) -> Tensor | None:
    """Check and convert ``fill_value`` to a tensor (C,) or (); None unless the padding is ``"fill"``."""
    if padding_mode != "fill":
        if fill_value is not None:
            raise ValueError(
                f"fill_value must be None unless padding_mode is 'fill', {validation.got(fill_value)} "
                f"with padding_mode {padding_mode!r}"
            )
        return None
    channels, is_label = input.shape[1], input.dtype in LABEL_DTYPES
    if isinstance(fill_value, Tensor):
        return _of_tensor(fill_value, input, is_label)
    given = plain("fill_value", fill_value, depth=1)
    dtype = contract.coordinate_dtype(input.dtype)
    if is_label:
        given, dtype = _labels(given, input.dtype), input.dtype
    if is_sequence(given) and all(map(validation.is_number, given)):
        if len(given) != channels:
            raise ValueError(
                f"fill_value must be a number or have one value per channel, {channels} values, "
                f"{validation.got(fill_value)}"
            )
        if is_label:  # constants are kept as floats, which cannot hold every int64
            values = torch.stack([torch.full((), n, dtype=dtype, device=input.device) for n in given])
        else:
            values = _numbers(given, input.device, dtype)
        return sharding.replicated(values, input)
    if not validation.is_number(given):
        raise TypeError(
            "fill_value must be a number or one per channel, as a sequence or a tensor, for padding_mode "
            f"'fill', {validation.got(fill_value)}"
        )
    value = torch.full((), given, dtype=dtype, device=input.device)
    return sharding.replicated(value, input)


def _of_tensor(fill_value: Tensor, input: Tensor, is_label: bool) -> Tensor:
    if not is_label:
        if fill_value.dtype in INT_DTYPES:  # allowed, as lists and arrays of ints are
            fill_value = fill_value.to(contract.coordinate_dtype(input.dtype))
        validation.floating("fill_value", fill_value)
    elif validation.tensor("fill_value", fill_value).dtype != input.dtype:
        raise TypeError(f"fill_value must have the dtype of input, {input.dtype}, got {fill_value.dtype}")
    channels = input.shape[1]
    if fill_value.ndim > 1 or (fill_value.ndim == 1 and fill_value.shape[0] != channels):
        raise ValueError(
            f"fill_value must be a number or have one value per channel, shape ({channels},), "
            f"got shape {tuple(fill_value.shape)}"
        )
    validation.on_device("fill_value", fill_value, input)
    return fill_value


def _labels(given: Any, dtype: torch.dtype) -> int | list[int]:
    """Require an int, or a sequence of ints, in the range of the labels' dtype."""
    if is_sequence(given):
        return [_labels(item, dtype) for item in given]
    least, most = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    if not isinstance(given, int) or (isinstance(given, bool) and dtype != torch.bool):
        raise TypeError(f"fill_value must be an int for an input of dtype {dtype}, {validation.got(given)}")
    if not least <= given <= most:
        raise ValueError(
            f"fill_value must be from {least} to {most} for an input of dtype {dtype}, got {given}"
        )
    return int(given)
