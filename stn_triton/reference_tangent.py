"""Forward mode and second derivatives in plain PyTorch: the tangent of the output, and its gradients.

The operator is linear in the input and the fill values: their tangents are sampled like them. The effect of a
tangent of theta is summed tap by tap here, because PyTorch's samplers have no forward mode, and not always
second derivatives. Let w be the weight of a tap, a product over axes, and v_k the velocity of the positions
along axis k. Then the output moves by the sum over taps of

    (sum over k of v_k dw/dx_k) * (input[tap] - fill).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stn_triton import contract, reference, reference_grid, reference_parts, reference_taps
from stn_triton.options import DEFAULT, Options, Tangents


class _Step(NamedTuple):
    """A part of the output, its matrices grouped by image."""

    images: slice
    grid: reference_grid.Grid
    content: Tensor
    """(images, C, pixels): the images minus the fill values."""
    velocity: Tensor
    """(matrices, *size, D): velocity of the positions, in normalised units."""
    growth: Tensor | None
    """(matrices, *size, 1): relative growth of the divisor of a projective map."""
    scale: Tensor
    """(D,): pixels per normalised unit."""


class _MovingTap(NamedTuple):
    """A tap of every position, and how its weight changes; tensors are (images, positions)."""

    tap: reference_taps.Tap
    slopes: Tensor
    """(images, positions, D): the derivative of the weight by the position."""
    bends: Tensor
    """(images, positions, D): the change of ``slopes`` with the movement of the position."""
    change: Tensor
    """The change of the weight with the movement of the position."""


def forward(
    input: Tensor,
    theta: Tensor,
    fill: Tensor | None,
    image_index: Tensor | None,
    tangents: Tangents,
    *,
    size: Sequence[int],
    options: Options = DEFAULT,
) -> Tensor:
    """The tangent of the output, (M, C, *size). A tangent of None means zeros."""
    dtype = contract.coordinate_dtype(input.dtype)
    output = torch.zeros(len(theta), input.shape[1], *size, dtype=dtype)
    linear = linear_tangents(input, fill, tangents)
    if linear is not None:
        moved, moved_fill = linear
        output += reference.forward(moved, theta, moved_fill, image_index, size=size, options=options)
    for step in _steps(input, theta, fill, image_index, tangents.theta, size, options):
        total = 0
        for moving in _moving_taps(step, input.shape[2:], options):
            total = total + moving.change[:, None] * moving.tap.pick(step.content)
        part = step.grid.part
        total = total.unflatten(2, (part.count, *step.velocity.shape[1:-1])).transpose(1, 2).flatten(0, 1)
        output[part.place] += reference_grid.pooled(total, part)
    output = output.to(input.dtype)
    return output.contiguous(memory_format=contract.memory_format(input, size))


def backward(
    grad_output: Tensor,
    input: Tensor,
    theta: Tensor,
    fill: Tensor | None,
    image_index: Tensor | None,
    tangents: Tangents,
    *,
    options: Options = DEFAULT,
    output_mask: Sequence[bool] = (True, True, False),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``forward`` for input, theta and fill; None where ``output_mask`` is False."""
    dtype = contract.coordinate_dtype(input.dtype)
    size = grad_output.shape[2:]
    grad_input = None
    if output_mask[0]:  # only if wanted: it is as large as the images
        grad_input = input.new_zeros((*input.shape[:2], math.prod(input.shape[2:])), dtype=dtype)
    grad_theta = theta.new_zeros(theta.shape, dtype=dtype)
    grad_fill = None if fill is None else fill.new_zeros(fill.shape, dtype=dtype)
    linear = linear_tangents(input, fill, tangents)
    if output_mask[1] and linear is not None:
        moved, moved_fill = linear
        given = {"options": options, "output_mask": (False, True, False)}
        grad_theta += reference.backward(grad_output, moved, theta, moved_fill, image_index, **given)[1]
    for step in _steps(input, theta, fill, image_index, tangents.theta, size, options):
        part = step.grid.part
        gradient = reference_grid.taken(grad_output, part.place, dtype)
        gradient = reference_grid.spread([gradient], [step.grid]).flatten(2)
        grad_position = grad_velocity = 0
        for moving in _moving_taps(step, input.shape[2:], options):
            share = gradient * moving.change[:, None]
            if output_mask[0]:
                index = moving.tap.index_like(share)
                grad_input[step.images].scatter_add_(2, index, share)
            if output_mask[2]:
                grad_fill -= share.sum((0, 2))
            if output_mask[1]:
                dot = (gradient * moving.tap.pick(step.content)).sum(1)[..., None]
                grad_velocity = grad_velocity + dot * moving.slopes
                grad_position = grad_position + dot * moving.bends
        if output_mask[1]:
            shape = step.velocity.shape
            grad_velocity = grad_velocity.view(shape) * step.scale
            grad_position = grad_position.view(shape) * step.scale
            grad_rows = _row_derivatives(grad_position, grad_velocity, step)
            grad_theta[part.matrices] += reference_grid.grad_theta_of(grad_rows, step.grid)
    form = contract.memory_format(input, input.shape[2:])
    return (
        grad_input.view(input.shape).to(input.dtype, memory_format=form) if output_mask[0] else None,
        grad_theta.to(theta.dtype) if output_mask[1] else None,
        grad_fill.to(fill.dtype) if output_mask[2] else None,
    )


def linear_tangents(
    input: Tensor, fill: Tensor | None, tangents: Tangents
) -> tuple[Tensor, Tensor | None] | None:
    """The tangents of input and fill values, to be sampled like them; None if both are None."""
    of_input, _, of_fill = tangents
    if of_input is None and of_fill is None:
        return None
    of_input = torch.zeros_like(input) if of_input is None else of_input.to(input.dtype)
    if fill is not None:
        of_fill = torch.zeros_like(fill) if of_fill is None else of_fill.to(fill.dtype)
    return of_input, of_fill


def _steps(
    input: Tensor,
    theta: Tensor,
    fill: Tensor | None,
    image_index: Tensor | None,
    theta_tangent: Tensor,
    size: Sequence[int],
    options: Options,
) -> Iterator[_Step]:
    if options.mode == "nearest":  # moving a little changes nothing
        return
    dtype = contract.coordinate_dtype(input.dtype)
    scale = reference_taps.scale_of(input.shape[2:], options).to(dtype)
    for share in reference_parts.shares_of(input, theta, image_index, size, options):
        content = reference_grid.taken(input, share.images, dtype).flatten(2)
        if fill is not None:
            content = content - fill.to(dtype)[:, None]
        for part in itertools.chain(*share.batches):
            tangent = reference_grid.taken(theta_tangent, part.matrices, dtype)
            grid = reference_grid.grid_of(theta, part, size, options, dtype)
            velocity = reference_grid.rows_at(tangent, grid.base, grid.bases)
            growth = None
            if grid.divisor is not None:
                growth = velocity[..., -1:] / grid.divisor
                velocity = velocity[..., :-1] / grid.divisor - growth * grid.positions
            yield _Step(share.images, grid, content, velocity, growth, scale)


def _row_derivatives(grad_position: Tensor, grad_velocity: Tensor, step: _Step) -> Tensor:
    """Derivatives by the results of ``rows_at`` from derivatives by positions and velocities."""
    if step.growth is None:
        return grad_position
    grad_position = grad_position - grad_velocity * step.growth
    rows = reference_grid.row_derivatives(grad_position, step.grid)
    rows[..., -1:] -= (grad_velocity * step.velocity).sum(-1, keepdim=True) / step.grid.divisor
    return rows


def _moving_taps(step: _Step, size_in: Sequence[int], options: Options) -> Iterator[_MovingTap]:
    images, dim = len(step.content), len(size_in)
    velocity = (step.velocity * step.scale).reshape(images, -1, dim)
    unseen = None if step.grid.unseen is None else step.grid.unseen.reshape(images, -1)
    lost = None if step.grid.lost is None else step.grid.lost.reshape(images, -1, dim)
    for tap in reference_taps.taps(step.grid.positions.reshape(images, -1, dim), size_in, options, lost):
        if unseen is not None:
            tap = tap._replace(inside=tap.inside & ~unseen)
        slopes = [tap.product({k: 1}) for k in range(dim)]
        bends = []
        for k in range(dim):
            bend = velocity[..., k] * tap.product({k: 2})
            for j in range(dim):
                if j != k:
                    bend = bend + velocity[..., j] * tap.product({k: 1, j: 1})
            bends.append(bend)
        slopes = torch.where(tap.inside[..., None], torch.stack(slopes, -1), 0)
        bends = torch.where(tap.inside[..., None], torch.stack(bends, -1), 0)
        change = torch.where(tap.inside, (velocity * slopes).sum(-1), 0)
        yield _MovingTap(tap, slopes, bends, change)
