"""Conversion of numbers of NumPy or PyTorch to Python's, once, where an argument is checked."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_PYTHON = (int, float, bool, str, type(None))
SYMBOLIC = (torch.SymInt, torch.SymFloat)
"""Numbers that are unknown while a program is compiled, such as its dynamic sizes."""


def plain(name: str, value: Any, depth: int = 0) -> Any:
    """Convert a number of NumPy or PyTorch to Python's. Other values and symbolic numbers are returned as is.

    An array or a tensor without dimensions is a number. Everything that ``operator.index`` takes is an int.

    Args:
        name: name of the argument.
        value: anything.
        depth: arrays, tensors and sequences with at most so many dimensions become lists; tuples stay tuples.

    Raises:
        TypeError: a tensor requires a gradient or has a tangent, which would be lost.
    """
    kind = type(value)
    if kind in _PYTHON or (kind in (tuple, list) and all(type(item) in _PYTHON for item in value)):
        return value  # the usual case, first because every call converts its arguments
    if isinstance(value, SYMBOLIC):
        return value
    if isinstance(value, Tensor) and (value.is_nested or value.layout != torch.strided or value.is_meta):
        return value
    if hasattr(value, "tolist") and hasattr(value, "ndim"):  # an array, a tensor, or one of NumPy's numbers
        if value.ndim > depth:
            return value
        if isinstance(value, Tensor) and _has_gradient(value):
            raise TypeError(
                f"{name} must need no gradient here: it is read as a number and the gradient would be lost. "
                f"Detach it, got {value!r}"
            )
        value = value.tolist() if value.ndim else value.item()
        # item() returns numbers for which Python has no type as NumPy's.
        return float(value) if isinstance(value, numbers.Real) and type(value) not in _PYTHON else value
    if is_sequence(value) and depth:
        items = [plain(name, item, depth - 1) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return operator.index(value) if hasattr(value, "__index__") else value


def is_sequence(value: object) -> bool:
    """Whether a value is a sequence, but not text."""
    if isinstance(value, (tuple, list)):
        return True
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _has_gradient(value: Tensor) -> bool:
    return value.requires_grad or forward_ad.unpack_dual(value).tangent is not None
