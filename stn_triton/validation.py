"""Checks of arguments, for the whole package.

Each function takes an argument's name and value, or the value alone where the name never varies, and returns
the value. An error has the name, the expected and the given value: TypeError for a wrong type or dtype, else
ValueError. Numbers of NumPy and tensors without dimensions are returned as Python's
numbers, see ``plain.py``. Further checks are in ``nn/checks.py`` and ``transforms/inputs.py``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stn_triton import splines
from stn_triton.options import INPUT_DTYPES, LABEL_DTYPES, THETA_DTYPES, Options
from stn_triton.plain import is_sequence, plain

_LARGEST = sys.float_info.max
# Keys: argument, rows expected, and rows and columns given.
_HINTS = {
    ("theta", 2, 3, 3): ": for homographies call perspective_grid_sample",
    ("theta", 3, 2, 3): ": for affine matrices of images call affine_grid_sample",
}


def described(value: object) -> str:
    """A value and its type, for an error message."""
    return f"{shown(value)} of type {type(value).__name__}"


def shown(value: object) -> str:
    """A value for an error message, cut to 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def got(value: object) -> str:
    """The end of an error message: what was given."""
    return f"got {described(value)}"


def is_int(value: object) -> bool:
    """Whether a value is an int and no bool; a symbolic int of a compiler counts."""
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a float, or an int that fits into a float, and no bool."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= _LARGEST
    return isinstance(value, float)


def flag(name: str, value: Any) -> bool:
    """Require a bool."""
    given = value if isinstance(value, bool) else plain(name, value)
    if not isinstance(given, bool):
        raise TypeError(f"{name} must be a bool, {got(value)}")
    return given


def corners(align_corners: Any) -> bool:
    """Check ``align_corners``. None, the default of ``F.grid_sample``, becomes False."""
    return align_corners is not None and flag("align_corners", align_corners)


def choice(name: str, value: Any, choices: Sequence[str], hint: str = "") -> str:
    """Require one of ``choices``; ``hint`` says what they have in common."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, {got(value)}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}{hint}, got {shown(value)}")
    return value


def count(name: str, value: Any, least: int = 1) -> int:
    """Require an int of at least ``least``."""
    given = plain(name, value)
    if not is_int(given):
        raise TypeError(f"{name} must be an int, {got(value)}")
    if given < least:
        raise ValueError(f"{name} must be at least {least}, got {given}")
    return given


def counts(name: str, value: Any) -> list[int]:
    """Require a sequence of positive ints, of any length."""
    given = plain(name, value, depth=1)
    if not is_sequence(given):
        raise TypeError(f"{name} must be a sequence of ints, {got(value)}")
    return [count(f"{name}[{index}]", item) for index, item in enumerate(given)]


def number(name: str, value: Any) -> float:
    """Require a finite number."""
    given = plain(name, value)
    if type(given) is int and not is_number(given):
        raise ValueError(f"{name} must fit into a float, got an int of {given.bit_length()} bits")
    if not is_number(given):
        raise TypeError(f"{name} must be a number, {got(value)}")
    if not -math.inf < given < math.inf:
        raise ValueError(f"{name} must be finite, got {given}")
    return given


def positive(name: str, value: Any) -> float:
    """Require a finite number above 0."""
    given = number(name, value)
    if given <= 0:
        raise ValueError(f"{name} must be positive, got {given}")
    return given


def dimension(value: Any) -> int:
    """Check ``dim``, which is 2 or 3."""
    given = plain("dim", value)
    if not is_int(given) or given not in (2, 3):
        raise ValueError(f"dim must be 2 (images) or 3 (volumes), got {shown(value)}")
    return given


def tensor(name: str, value: Any) -> Tensor:
    """Require a strided tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, {got(value)}")
    if value.is_nested:
        raise TypeError(
            f"{name} must be one tensor of equal parts, got a nested tensor: pad it with "
            "torch.nested.to_padded_tensor, or call for each of its parts"
        )
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a strided tensor, got layout {value.layout}")
    return value


def floating(name: str, value: Any) -> Tensor:
    """Require a strided tensor with a floating dtype."""
    if tensor(name, value).dtype not in THETA_DTYPES:
        raise TypeError(f"{name} must have a floating dtype (16, 32 or 64 bits), got {value.dtype}")
    return value


def sizes(
    name: str,
    value: Any,
    dims: Sequence[int],
    expected: str,
    hints: Mapping[int, str] | None = None,
) -> list[int]:
    """Require a sequence of positive ints, as many as one of ``dims``; ``hints`` explain other numbers."""
    return _sizes(name, value, plain(name, value, depth=1), dims, expected, hints)


def _sizes(
    name: str, given: Any, value: Any, dims: Sequence[int], expected: str, hints: Mapping[int, str] | None
) -> list[int]:
    """Implement ``sizes``; ``value`` is ``given`` converted by ``plain``, which may read from a GPU."""
    if not is_sequence(value):
        raise TypeError(f"{name} must be {expected}, {got(given)}")
    if len(value) not in dims:
        hint = (hints or {}).get(len(value), "")
        raise ValueError(f"{name} must be {expected}, got {shown(tuple(value))}{hint}")
    for extent in value:
        if not is_int(extent):
            raise TypeError(f"{name} must be {expected}, got {shown(tuple(value))} with {described(extent)}")
        if extent < 1:
            raise ValueError(f"{name} must be positive on each axis, got {shown(tuple(value))}")
    return list(value)


def output_size(value: Any, dim: int, hints: Mapping[int, str] | None = None) -> list[int]:
    """Check ``size`` of the output, an int for all axes or one per axis. Returns one per axis."""
    names = "two ints (H_out, W_out)" if dim == 2 else "three ints (D_out, H_out, W_out)"
    read = plain("size", value, depth=1)
    if is_int(read):
        read = (read,) * dim
    return _sizes("size", value, read, (dim,), f"None, an int, or {names}", hints)


def control_points(name: str, value: Any, offsets: int | None = None) -> list[float]:
    """Check the control points of a spline. Returns x and y of each point in one list.

    Args:
        name: name of the argument.
        value: (rows, columns), or pairs (x, y), or None for as many rows as columns.
        offsets: number of points that there are offsets for; if None, ``value`` must not be None.
    """
    alone = "" if offsets is None else "None, "
    expected = f"{name} must be {alone}two ints (rows, columns), or a sequence of pairs of numbers (x, y)"
    if value is None and offsets is not None:
        side = 2
        while side * side < offsets:  # math.isqrt takes no symbolic sizes
            side += 1
        if side * side != offsets:
            raise ValueError(
                f"{name} must say where control points are if their number is not a square (4, 9, 16, ...): "
                f"offsets has {offsets}"
            )
        return splines.regular_points(side, side)
    value = plain(name, value, depth=2)
    if not is_sequence(value):
        raise TypeError(f"{expected}, {got(value)}")
    if len(value) == 2 and all(is_int(n) for n in value):
        if min(value) < 2:
            raise ValueError(f"{name} must have at least 2 rows and 2 columns, got {shown(tuple(value))}")
        flat = splines.regular_points(*value)
    else:
        for point in value:
            is_pair = is_sequence(point) and len(point) == 2 and all(map(is_number, point))
            if not is_pair or not all(map(math.isfinite, point)):
                raise TypeError(f"{expected}, all finite, got one that is {described(point)}")
        flat = [float(n) for point in value for n in point]
        if len(flat) < 6:
            raise ValueError(f"{name} must be at least three, got {len(value)}")
    if offsets is not None and len(flat) != 2 * offsets:
        raise ValueError(
            f"offsets must have one entry per control point, shape (..., {len(flat) // 2}, 2) for {name} "
            f"{described(value)}, got {offsets}"
        )
    return flat


def images(input: Any, volumes: bool = True) -> Tensor:
    """Check ``input`` of an operator: images or, if allowed, volumes."""
    if tensor("input", input).dtype not in INPUT_DTYPES:
        names = ", ".join([str(dtype) for dtype in INPUT_DTYPES])
        raise TypeError(f"input must have one of the dtypes {names}, got {input.dtype}")
    if input.ndim != 4 and not (volumes and input.ndim == 5):
        others = " or 5 (N, C, D_in, H_in, W_in)" if volumes else ""
        raise ValueError(
            f"input must have 4 dimensions (N, C, H_in, W_in){others}, got shape {tuple(input.shape)}"
        )
    if 0 in input.shape[2:]:
        raise ValueError(f"input must have at least one pixel per image, got shape {tuple(input.shape)}")
    return input


def sampled_dtype(dtype: torch.dtype, options: Options) -> None:
    """Require ``"nearest"`` without antialiasing for labels."""
    if dtype not in LABEL_DTYPES or (options.mode == "nearest" and not options.antialias):
        return
    wanted, given = "mode must be 'nearest'", repr(options.mode)
    if options.mode == "nearest":
        wanted, given = "antialias must be False", "True"
    raise ValueError(
        f"{wanted} for an input of dtype {dtype}, whose values are labels, got {given}; convert input to a "
        "floating dtype to interpolate"
    )


def maps(name: str, value: Any, rows: int, columns: int, input: Tensor, image_index: Tensor | None) -> Tensor:
    """Check matrices or offsets of shape (N, rows, columns), (N, K, ...) or (M, ...), and ``image_index``."""
    floating(name, value)
    n = input.shape[0]
    # Sizes are compared one by one: a tuple of a compiler's symbolic sizes does not equal one of ints.
    if value.ndim not in (3, 4) or value.shape[-2] != rows or value.shape[-1] != columns:
        hint = _HINTS.get((name, rows, *value.shape[-2:]), "")
        if value.ndim == 2 and not hint:
            hint = f": one for all images is {name}[None]"
        raise ValueError(
            f"{name} must have shape (N, {rows}, {columns}) or (N, K, {rows}, {columns}) for input of shape "
            f"{tuple(input.shape)}, got {tuple(value.shape)}{hint}"
        )
    if image_index is not None:
        if tensor("image_index", image_index).dtype != torch.int64:
            raise TypeError(f"image_index must have dtype torch.int64, got {image_index.dtype}")
        if value.ndim != 3:
            raise ValueError(
                f"{name} must have shape (M, {rows}, {columns}) with image_index, got {tuple(value.shape)}"
            )
        m = value.shape[0]
        if image_index.ndim != 1 or (image_index.shape[0] != m and m != 1):
            raise ValueError(
                f"image_index must have one entry per matrix, shape ({m},) for {name} of shape "
                f"{tuple(value.shape)}, got shape {tuple(image_index.shape)}"
            )
        on_device("image_index", image_index, input)
    elif value.shape[0] != n and value.shape[0] != 1 and (value.ndim == 4 or n != 1):
        given = f"(1, {rows}, {columns})" if value.ndim == 3 else f"(1, K, {rows}, {columns})"
        hint = f"; with image_index {name} may hold any number" if value.ndim == 3 else ""
        raise ValueError(
            f"{name} must hold one matrix per image: expected shape ({n}, ...) or {given} "
            f"for input of shape {tuple(input.shape)}, got {tuple(value.shape)}{hint}"
        )
    on_device(name, value, input)
    return value


def on_device(name: str, value: Tensor, input: Tensor) -> None:
    """Require the device of ``input``."""
    if value.device != input.device:
        raise ValueError(f"{name} must be on the device of input, {input.device}, got {value.device}")
