"""The rival of the operator's backward: the kernel that scatters, where the operator gathers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.function import Function, once_differentiable

import stn_triton
from perf.measuring.providers import Provider
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


def sampler(input: Tensor, theta: Tensor, size: Sequence[int], **options: str) -> Tensor:
    """The operator, whose backward scatters; for one matrix per image."""
    return _Scatter.apply(input, theta, size, options)


_WHAT = "the operator, with both gradients by atomic additions in one pass over the output"
SCATTER = Provider("scatter", "fused scatter", _WHAT, lambda: sampler, may_be_unavailable=True)
