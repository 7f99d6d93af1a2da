"""Checks of arguments, which convert numbers and arrays into tensors, and sizes into (W, H)."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from typing import Any

import torch
from torch import Tensor

from stn_triton import constants, tracing, validation
from stn_triton.options import INT_DTYPES
from stn_triton.plain import is_sequence, plain

Sizes = Sequence[int]  # (H, W) or (D, H, W)
_DEPTH = 8  # levels of nested sequences that may hold arrays


def tensor(name: str, value: Any, like: Tensor | None = None) -> Tensor:
    """Convert a value into a floating tensor; numbers, sequences and arrays take the dtype of ``like``.

    16-bit tensors and arrays become fp32, because results in 16 bits would be off by parts of a pixel.
    """
    if like is not None:
        dtype, device = torch.promote_types(like.dtype, torch.float32), like.device
    else:  # arrays keep their dtype
        dtype, device = None if is_array(value) else torch.get_default_dtype(), None
    if isinstance(value, Tensor):
        if value.dtype in INT_DTYPES:  # allowed, like lists and arrays of ints
            value = value.to(dtype)
    else:
        given = value
        if not _holds_tensors(value):
            given = _readable(name, value)
        elif not tracing.is_recording():  # a trace has sizes that are tensors
            raise TypeError(
                f"{name} must be one tensor or hold only numbers, got a sequence of tensors: stack it"
            )
        try:
            if like is not None and type(given) in (int, float):  # filled on the device: a copy waits for it
                value = torch.full((), given, dtype=dtype, device=device)
            else:
                value = constants.tensor_of(given, device, dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{name} must be a tensor, a number or a sequence of numbers, {validation.got(value)}"
            ) from error
    value = validation.floating(name, value)
    return value.float() if value.dtype.itemsize == 2 else value


def vectors(
    name: str, value: Any, lengths: tuple[int, ...], meaning: str, like: Tensor | None = None
) -> Tensor:
    """Convert a value into a tensor (..., n) with n one of ``lengths``; a number alone is one of length 1."""
    value = tensor(name, value, like)
    if value.ndim == 0 and 1 in lengths:
        value = value[None]
    shape = tracing.shape_of(value)
    if value.ndim == 0 or shape[-1] not in lengths:
        raise ValueError(f"{name} must have shape {meaning}, got {tuple(shape)}")
    return value


def matrices(name: str, value: Any, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Convert a value into a tensor (..., rows, columns) with (rows, columns) one of ``shapes``."""
    value = tensor(name, value)
    shape = tracing.shape_of(value)
    # Sizes are compared one by one: in a tuple, a compiler's symbolic sizes differ from equal numbers.
    if value.ndim < 2 or not any(shape[-2] == r and shape[-1] == c for r, c in shapes):
        expected = " or ".join([f"(..., {rows}, {columns})" for rows, columns in shapes])
        raise ValueError(f"{name} must have shape {expected}, got {tuple(shape)}")
    return value


def sizes(name: str, value: Any, dims: tuple[int, ...] = (2, 3)) -> list[int]:
    """Check a spatial size and return it in the order of coordinates: (W, H) or (W, H, D)."""
    words = " or ".join([("(H, W)", "(D, H, W)")[dim - 2] for dim in dims])
    found = tracing.untraced(validation.sizes, name, value, dims, f"a sequence of ints {words}")
    if tracing.is_recording():  # in fp64, because results from recorded ints would be in fp32
        found = [n.double() if isinstance(n, Tensor) else n for n in tracing.recorded_size(value, found)]
    return found[::-1]


def as_like(numbers: Sequence[float | Tensor], like: Tensor) -> list[float | Tensor]:
    """Convert those numbers that a trace has recorded as tensors to the dtype of ``like``."""
    return [n.to(like) if isinstance(n, Tensor) else n for n in numbers]


def is_array(value: Any) -> bool:
    """Whether a value is an array whose dtype is kept; arrays of ints and NumPy's scalars are not."""
    if isinstance(value, Number) or not hasattr(value, "__array_interface__"):
        return False
    return value.dtype.kind not in "biu"


def _readable(name: str, value: Any) -> Any:
    """Convert arrays for PyTorch (writable, native byte order, positive strides), and others to numbers."""
    if torch.compiler.is_compiling():  # here arrays are tensors already
        return value
    if is_array(value):
        return value.astype(value.dtype.newbyteorder("="), order="C")
    return plain(name, value, _DEPTH)


def _holds_tensors(value: Any) -> bool:
    return is_sequence(value) and any(isinstance(item, Tensor) or _holds_tensors(item) for item in value)
