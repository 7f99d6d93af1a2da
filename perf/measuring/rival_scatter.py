"""The rival of the operator's backward: the kernel that scatters, where the operator gathers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.function import Function, once_differentiable

import stn_triton
from stn_triton import launch
from stn_triton.options import Options


class _Scatter(Function):
    @staticmethod
    def forward(ctx, input, theta, size, options):
        ctx.save_for_backward(input, theta)
        ctx.options = options
        return stn_triton.affine_grid_sample(input, theta, size, **options)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        given = {"options": Options(**ctx.options), "output_mask": (*ctx.needs_input_grad[:2], False)}
        grads = launch.backward(grad_output, *ctx.saved_tensors, **given, gathers=False)
        return *grads[:2], None, None


def sampler(input: Tensor, theta: Tensor, size: Sequence[int], **options: str | int) -> Tensor:
    """The operator, whose backward scatters; for one matrix per image.

    Raises:
        ValueError: images have several matrices, or are antialiased.
    """
    if theta.ndim > 3 or "antialias" in options:
        raise ValueError("the fused scatter takes one matrix per image and no antialiasing")
    return _Scatter.apply(input, theta, size, options)
