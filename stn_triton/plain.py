"""Numbers that NumPy or PyTorch hold, as Python's: read once, where an argument is checked."""

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
"""Numbers that a compiler does not know yet, such as the sizes that an exported program leaves open."""


def plain(name: str, value: Any, depth: int = 0) -> Any:
    """A number of NumPy or PyTorch as Python's; whatever is none, or is symbolic, comes back as it is.

    An array or a tensor without dimensions is a number. Whatever ``operator.index`` takes is an int.

    Args:
        name: of the argument.
        value: anything.
        depth: how many dimensions are read: arrays, tensors and sequences of up to as many become lists, and
            tuples tuples.

    Raises:
        TypeError: a tensor among them has a gradient, which would be lost.
    """
    kind = type(value)
    if kind in _PYTHON or (kind in (tuple, list) and all(type(item) in _PYTHON for item in value)):
        return value  # nearly always, and at once: this is part of each call
    if isinstance(value, SYMBOLIC):
        return value
    if isinstance(value, Tensor) and (value.is_nested or value.layout != torch.strided or value.is_meta):
        return value
    if hasattr(value, "tolist") and hasattr(value, "ndim"):  # an array, a tensor, or one of NumPy's numbers
        if value.ndim > depth:
            return value
        if isinstance(value, Tensor) and _has_gradient(value):
            raise TypeError(
                f"{name} must need no gradient here, for it is read as a number and the gradient would be "
                f"lost without a word: detach it, got {value!r}"
            )
        value = value.tolist() if value.ndim else value.item()
        # The numbers that Python has no type for stay NumPy's.
        return float(value) if isinstance(value, numbers.Real) and type(value) not in _PYTHON else value
    if is_sequence(value) and depth:
        items = [plain(name, item, depth - 1) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return operator.index(value) if hasattr(value, "__index__") else value


def is_sequence(value: object) -> bool:
    """Whether it is a sequence of things, and no text."""
    if isinstance(value, (tuple, list)):
        return True
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _has_gradient(value: Tensor) -> bool:
    return value.requires_grad or forward_ad.unpack_dual(value).tangent is not None
