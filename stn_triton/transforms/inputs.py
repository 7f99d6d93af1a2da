"""What the functions of this package are given, checked: numbers and arrays as tensors, sizes as (W, H)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stn_triton import tracing, validation

Sizes = Sequence[int]  # (H, W) or (D, H, W)


def tensor(name: str, value: Any, like: Tensor | None = None) -> Tensor:
    """A floating tensor as it is; numbers, sequences of numbers and arrays as one, as ``like`` if given."""
    if not isinstance(value, Tensor):
        if _holds_tensors(value):  # torch.as_tensor would cut their gradients off without a word
            raise TypeError(
                f"{name} must be one tensor or hold only numbers, got a sequence of tensors: stack it"
            )
        if like is not None:
            dtype, device = like.dtype, like.device
        else:  # arrays keep their dtype
            dtype = None if is_array(value) else torch.get_default_dtype()
            device = None
        try:
            if like is not None and type(value) in (int, float):  # filled on the device: a copy would wait
                value = torch.full((), value, dtype=dtype, device=device)
            else:
                value = torch.as_tensor(value, dtype=dtype, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{name} must be a tensor, a number or a sequence of numbers, {validation.got(value)}"
            ) from error
    return validation.floating(name, value)


@tracing.reads_sizes
def vectors(
    name: str, value: Any, lengths: tuple[int, ...], meaning: str, like: Tensor | None = None
) -> Tensor:
    """A tensor (..., n) with n one of ``lengths``."""
    value = tensor(name, value, like)
    if value.ndim == 0 or value.shape[-1] not in lengths:
        raise ValueError(f"{name} must have shape {meaning}, got {tuple(value.shape)}")
    return value


@tracing.reads_sizes
def matrices(name: str, value: Any, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """A tensor (..., rows, columns) with (rows, columns) one of ``shapes``."""
    value = tensor(name, value)
    # Sizes one by one: a compiler's symbolic sizes are not what they equal in a tuple.
    if value.ndim < 2 or not any(value.shape[-2] == r and value.shape[-1] == c for r, c in shapes):
        expected = " or ".join([f"(..., {rows}, {columns})" for rows, columns in shapes])
        raise ValueError(f"{name} must have shape {expected}, got {tuple(value.shape)}")
    return value


def sizes(name: str, value: Any, dims: tuple[int, ...] = (2, 3)) -> list[int]:
    """A spatial size, checked, in the order of coordinates: (W, H) or (W, H, D)."""
    words = " or ".join([("(H, W)", "(D, H, W)")[dim - 2] for dim in dims])
    return list(reversed(validation.sizes(name, value, dims, f"a sequence of ints {words}")))


def is_array(value: Any) -> bool:
    """An array, which has a dtype to keep; NumPy's numbers are numbers."""
    return hasattr(value, "__array_interface__") and not isinstance(value, (int, float))


def _holds_tensors(value: Any) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    return any(isinstance(item, Tensor) or _holds_tensors(item) for item in value)
