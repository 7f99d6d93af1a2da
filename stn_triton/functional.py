"""The public function: check every argument, then make one operator call."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

import torch
from torch import Tensor

from stn_triton import ops

MODES = ("bilinear",)
PADDING_MODES = ("zeros",)
INPUT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def affine_grid_sample(
    input: Tensor,
    theta: Tensor,
    size: int | Sequence[int] | None = None,
    *,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """Warp images by affine matrices: ``F.grid_sample(input, F.affine_grid(theta, ...))`` in one pass.

    The grid generator and the sampler of a spatial transformer (Jaderberg et al. 2015, section 3.2 and
    3.3) as one operator that never stores a grid. Semantics are PyTorch's; on a GPU the identity and
    whole-pixel shifts are exact, and the backward is deterministic, bit for bit.

    Args:
        input: images (N, C, H_in, W_in), fp16, bf16, fp32 or fp64, any strides.
        theta: matrices (N, 2, 3), any floating dtype. Each maps an output position (x, y, 1) to an input
            position (x, y), both in normalised coordinates: -1 and 1 are the edges of the image.
        size: output size in pixels, (H_out, W_out) or one int for both, as in ``F.interpolate``.
            Default: the input's.
        mode: how to interpolate; ``"bilinear"``.
        padding_mode: what lies outside the image; ``"zeros"``.
        align_corners: whether -1 and 1 mean the centres of the corner pixels (True) or their outer edges
            (False), as in ``F.grid_sample``.

    Returns:
        (N, C, H_out, W_out) in the dtype and the memory format (NCHW or channels_last) of ``input``.
        Coordinates are computed in fp32 (fp64 for an fp64 ``input``), under autocast too. A coordinate
        that is not finite samples zero, with zero gradients. Differentiable once with respect to ``input``
        and ``theta``.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value.
        NotImplementedError: forward-mode or second derivatives.

    Example:
        >>> import math, torch, stn_triton
        >>> images = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> a = math.pi / 2
        >>> quarter_turn = torch.tensor([[[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]]])
        >>> stn_triton.affine_grid_sample(images, quarter_turn).round().int()[0, 0]
        tensor([[ 3,  7, 11, 15],
                [ 2,  6, 10, 14],
                [ 1,  5,  9, 13],
                [ 0,  4,  8, 12]], dtype=torch.int32)
    """
    _check_tensors(input, theta)
    size = _check_size(size, input)
    _check_choice("mode", mode, MODES)
    _check_choice("padding_mode", padding_mode, PADDING_MODES)
    if not isinstance(align_corners, bool):
        raise TypeError(f"align_corners must be a bool, got {_describe(align_corners)}")
    ops.refuse_forward_mode(input, theta)
    return ops.affine_grid_sample(input, theta, size, mode, padding_mode, align_corners)


def _check_tensors(input: Tensor, theta: Tensor) -> None:
    for name, tensor in (("input", input), ("theta", theta)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {_describe(tensor)}")
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a strided tensor, got layout {tensor.layout}")
    if input.dtype not in INPUT_DTYPES:
        names = ", ".join(str(dtype) for dtype in INPUT_DTYPES)
        raise TypeError(f"input must have one of the dtypes {names}, got {input.dtype}")
    if theta.dtype not in INPUT_DTYPES:
        raise TypeError(f"theta must have a floating dtype (16, 32 or 64 bits), got {theta.dtype}")
    if input.ndim != 4:
        raise ValueError(f"input must have 4 dimensions (N, C, H_in, W_in), got shape {tuple(input.shape)}")
    if input.shape[2] == 0 or input.shape[3] == 0:
        raise ValueError(f"input must have at least one pixel per image, got shape {tuple(input.shape)}")
    if theta.ndim != 3 or theta.shape[1] != 2 or theta.shape[2] != 3:
        raise ValueError(f"theta must have shape (N, 2, 3), got {tuple(theta.shape)}")
    if theta.shape[0] != input.shape[0]:
        raise ValueError(
            f"theta must hold one matrix per image: expected shape ({input.shape[0]}, 2, 3) "
            f"for input of shape {tuple(input.shape)}, got {tuple(theta.shape)}"
        )
    if theta.device != input.device:
        raise ValueError(f"theta must be on the device of input, {input.device}, got {theta.device}")


def _check_size(size: int | Sequence[int] | None, input: Tensor) -> list[int]:
    if size is None:
        return [input.shape[2], input.shape[3]]
    expected = "size must be None, an int, or two ints (H_out, W_out)"
    if _is_int(size):
        size = (size, size)
    if not isinstance(size, Sequence) or isinstance(size, str):
        raise TypeError(f"{expected}, got {_describe(size)}")
    if len(size) != 2:
        hint = "; give the spatial size alone, without (N, C)" if len(size) == 4 else ""
        raise ValueError(f"{expected}, got {tuple(size)}{hint}")
    for extent in size:
        if not _is_int(extent):
            raise TypeError(f"{expected}, got {tuple(size)} with {_describe(extent)}")
        if extent < 1:
            raise ValueError(f"size must be positive, got {tuple(size)}")
        if extent >= 2**31:
            raise ValueError(f"size must be less than 2**31 on each axis, got {tuple(size)}")
    return list(size)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {_describe(value)}")
    if value not in choices:
        raise ValueError(
            f"{name} must be {' or '.join(map(repr, choices))} (all there is so far), got {value!r}"
        )


def _is_int(value: object) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _describe(value: object) -> str:
    return f"{reprlib.repr(value)} of type {type(value).__name__}"
