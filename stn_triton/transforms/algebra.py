"""Products and inverses of theta.

All arithmetic is elementwise. ``torch.matmul`` may compute in TF32 or, under autocast, in 16 bits, which
moves a crop by a tenth of a pixel and more. ``torch.linalg.inv`` waits for the GPU to find singular matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stn_triton import tracing
from stn_triton.transforms import inputs

AFFINE = ((2, 3), (3, 4))
PROJECTIVE = (3, 3)


@tracing.overridable
def compose(first: Tensor, *others: Tensor) -> Tensor:
    """Combine several warps in a row into one theta, so that an image is sampled once.

    A warp by ``compose(first, next, ...)`` equals a warp by ``first``, then a warp of the result by the next
    theta, and so on. But a single warp interpolates and cuts off only once. So a series of transformers can
    warp the original instead of blurring it at each step (inverse compositional spatial transformers, Lin and
    Lucey 2017, arXiv 1612.03897). The result is the matrix product in this order, because theta maps output
    to input. Sizes in between do not matter: coordinates are normalised.

    Args:
        first: (..., 2, 3), (..., 3, 4), or (..., 3, 3) for homographies; floating.
        others: thetas of the same dimension, dtype (16 bits count as fp32) and device. Leading dimensions
            broadcast; affine thetas of images and homographies may be mixed.

    Returns:
        (..., 2, 3) or (..., 3, 4), or (..., 3, 3) if an argument is a homography; fp32 for 16 bits.

    Raises:
        TypeError: an argument holds no real numbers, or dtypes differ.
        ValueError: an argument does not have the shape of a theta, or dimensions differ.

    Example:
        >>> import torch
        >>> from stn_triton import transforms
        >>> left_half = transforms.boxes(torch.tensor([0.0, 0.0, 4.0, 8.0]), (8, 8))
        >>> its_upper_half = transforms.boxes(torch.tensor([0.0, 0.0, 4.0, 4.0]), (8, 4))
        >>> transforms.compose(left_half, its_upper_half)
        tensor([[ 0.5000,  0.0000, -0.5000],
                [ 0.0000,  0.5000, -0.5000]])
    """
    result = inputs.matrices("first", first, (*AFFINE, PROJECTIVE))
    for index, theta in enumerate(others):
        name = f"others[{index}]"
        theta = inputs.matrices(name, theta, (*AFFINE, PROJECTIVE))
        _check_next(name, theta, result)
        affine = is_affine(result) and is_affine(theta)
        result = product(result if affine else homogeneous(result), homogeneous(theta))
    return result


@tracing.reads_sizes
def _check_next(name: str, theta: Tensor, result: Tensor) -> None:
    if theta.dtype != result.dtype:
        raise TypeError(f"{name} must have the dtype of first, {result.dtype}, got {theta.dtype}")
    dim = 3 if result.shape[-1] == 4 else 2
    if dim != (3 if theta.shape[-1] == 4 else 2):
        expected = "(..., 3, 4)" if dim == 3 else "(..., 2, 3) or (..., 3, 3)"
        raise ValueError(
            f"{name} must have shape {expected} after theta of shape {tuple(result.shape)}, "
            f"got {tuple(theta.shape)}"
        )


@tracing.overridable
def invert(theta: Tensor) -> Tensor:
    """Invert theta: composed with its inverse in either order, it gives the identity.

    Theta maps output positions to input positions, so its inverse says where in the output a position of the
    input lands.

    Args:
        theta: (..., 2, 3), (..., 3, 4), or (..., 3, 3) for homographies; floating. The inverse keeps a
            homography's sign: positions before the horizon stay before it.

    Returns:
        The same shape; fp32 for 16 bits. The inverse of a singular matrix is infinite or NaN and samples the
        outside. No error is raised, because checking values would stall a GPU.

    Raises:
        TypeError: ``theta`` holds no real numbers.
        ValueError: ``theta`` has another shape.

    Example:
        >>> import torch
        >>> from stn_triton import transforms
        >>> transforms.invert(torch.tensor([[2.0, 0.0, 0.5], [0.0, 4.0, 1.0]]))
        tensor([[ 0.5000, -0.0000, -0.2500],
                [-0.0000,  0.2500, -0.2500]])
    """
    theta = inputs.matrices("theta", theta, (*AFFINE, PROJECTIVE))
    if not is_affine(theta):
        return inverse(theta)
    linear = inverse(theta[..., :-1])
    return torch.cat((linear, -product(linear, theta[..., -1:])), dim=-1)


@tracing.reads_sizes
def is_affine(theta: Tensor) -> bool:
    """Whether theta is affine, without the last row of a homography."""
    return theta.shape[-2] != theta.shape[-1]


def homogeneous(theta: Tensor) -> Tensor:
    """Add the last row (0, ..., 0, 1) to theta (..., D, D + 1); square matrices already have it."""
    if not is_affine(theta):
        return theta
    last = tracing.zeros_like(theta[..., :1, :])
    return torch.cat((theta, torch.cat((last[..., :-1], last[..., -1:] + 1), dim=-1)), dim=-2)


def with_shift(linear: Tensor, shift: Tensor) -> Tensor:
    """Join a linear part and a last column (..., rows), broadcast, to a matrix (..., rows, D + 1)."""
    _, shift = torch.broadcast_tensors(linear[..., 0], shift)
    linear, _ = torch.broadcast_tensors(linear, shift.unsqueeze(-1))
    return torch.cat((linear, shift.unsqueeze(-1)), dim=-1)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply two matrices, in the dtype of both."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(dim=-2, dtype=a.dtype)


def inverse(matrix: Tensor) -> Tensor:
    """Invert (..., 2, 2) or (..., 3, 3), by cofactors."""
    if tracing.shape_of(matrix)[-1] == 2:
        (a, b), (c, d) = (row.unbind(-1) for row in matrix.unbind(-2))
        cofactors = torch.stack((d, -b, -c, a), dim=-1).unflatten(-1, (2, 2))
        return cofactors / (a * d - b * c)[..., None, None]
    x, y, z = matrix.unbind(-2)
    columns = [torch.linalg.cross(u, v) for u, v in ((y, z), (z, x), (x, y))]
    determinant = (x * columns[0]).sum(dim=-1, dtype=x.dtype)
    return torch.stack(columns, dim=-1) / determinant[..., None, None]
