"""A penalty for crops that lie outside the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stn_triton import splines, tracing, validation
from stn_triton.nn.precision import without_autocast

# Least depth (third coordinate) of a homography's points: nearer to the horizon, or behind it, they get this.
_DEPTH = 0.1


@tracing.overridable
def outside_penalty(
    theta: Tensor,
    *,
    points: Sequence[int] | Sequence[Sequence[float]] | None = None,
    lattice: int = 8,
    softness: float = 0.1,
) -> Tensor:
    """Share of each crop that lies outside the image, smoothed so that it has a gradient.

    Add it to the loss so that crops come back into the image. Outside it, the loss alone does not lead them
    back (stnbhwd#22, matconvnet#880, daerduoCarey's SpatialTransformerLayer#6; its #14 has such a penalty).
    A point at distance d outside the image counts s / (s + softness), s = sqrt(d^2 + softness^2) - softness:
    0 inside the image, almost 1 far away. So a crop within the image costs exactly nothing, a crop entirely
    outside is still drawn back, and for a small ``softness`` the penalty is the share itself.

    Args:
        theta: (..., 2, 3), (..., 3, 4), or (..., 3, 3) for homographies; or the offsets (..., P, 2) of
            control points. Floating; computed in fp32 at least, under autocast too.
        points: control points of offsets, as in ``thin_plate_spline_grid_sample``: for a layer, its
            ``control_points``.
        lattice: number of points of the crop that count along each axis, corners included.
        softness: width of the smoothing at the image's edge, in normalised coordinates (the image is 2 wide).

    Returns:
        (...) in [0, 1); fp32, or fp64 for an fp64 theta.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has the wrong shape or value.

    Example:
        >>> import torch, stn_triton
        >>> half_out = stn_triton.transforms.translation([[0.0, 0.0], [1.0, 0.0]])
        >>> stn_triton.nn.outside_penalty(half_out, lattice=64, softness=1e-6)
        tensor([0.0000, 0.5000])
    """
    validation.floating("theta", theta)
    lattice = validation.count("lattice", lattice, least=2)
    softness = validation.positive("softness", softness)
    with without_autocast(theta.device):
        theta = theta.to(torch.promote_types(theta.dtype, torch.float32))
        if theta.ndim >= 2 and theta.shape[-1] == 2:
            at, depth = _spline(theta, points, lattice)
        elif points is None:
            at, depth = _matrix(theta, lattice)
        else:
            raise ValueError(
                f"points must be None unless theta is offsets (..., P, 2), got shape {tuple(theta.shape)}"
            )
        width = softness * depth.clamp(min=_DEPTH)
        square = (at.abs() - depth.unsqueeze(-2)).relu().square().sum(dim=-2)
        # Equal to sqrt(square + width^2) - width, but without cancellation.
        distance = square / ((square + width.square()).sqrt() + width)
        share = distance / (distance + width)
        return (share * _weights(at.shape[-2], lattice, theta)).sum(dim=-1)


def _matrix(theta: Tensor, lattice: int) -> tuple[Tensor, Tensor]:
    """Map the lattice by matrices: numerators (..., D, L), and denominators (..., L) or (L,)."""
    if theta.ndim < 2 or tuple(theta.shape[-2:]) not in ((2, 3), (3, 4), (3, 3)):
        raise ValueError(
            "theta must have shape (..., 2, 3), (..., 3, 4) or (..., 3, 3), or be offsets (..., P, 2), "
            f"got {tuple(theta.shape)}"
        )
    dim = theta.shape[-1] - 1
    axis = torch.linspace(-1, 1, lattice, dtype=theta.dtype, device=theta.device)
    positions = torch.stack(torch.meshgrid([axis] * dim, indexing="xy")).flatten(1)
    ones = torch.ones_like(positions[:1])
    at = (theta.unsqueeze(-1) * torch.cat((positions, ones))).sum(dim=-2)
    return at[..., :dim, :], at[..., dim, :] if theta.shape[-2] > dim else ones[0]


def _spline(
    offsets: Tensor, points: Sequence[int] | Sequence[Sequence[float]] | None, lattice: int
) -> tuple[Tensor, Tensor]:
    """Map the lattice by splines: numerators (..., 2, L), and ones (L,) as denominators."""
    flat = validation.control_points("points", points, offsets.shape[-2])
    axis = torch.linspace(-1, 1, lattice, dtype=offsets.dtype, device=offsets.device)
    terms = splines.basis((axis, axis), flat).flatten(0, 1).T  # (P, L)
    positions = torch.stack(torch.meshgrid([axis] * 2, indexing="xy")).flatten(1)
    ones = torch.ones_like(positions[:1])
    matrices = splines.coefficients(offsets.flatten(0, -3), flat, offsets.dtype)
    at = (matrices.unsqueeze(-1) * torch.cat((positions, ones, terms))).sum(dim=-2)
    return at.unflatten(0, offsets.shape[:-2]), ones[0]


def _weights(dim: int, lattice: int, like: Tensor) -> Tensor:
    """Share of the crop that each lattice point stands for: smaller at edges and corners."""
    axis = torch.full((lattice,), 1 / (lattice - 1), dtype=like.dtype, device=like.device)
    axis[0] = axis[-1] = axis[0] / 2
    weights = axis
    for _ in range(dim - 1):
        weights = torch.outer(weights, axis).flatten()
    return weights
