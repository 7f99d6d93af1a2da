"""The scatter that the gather is measured against, where the operator gathers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.function import Function, once_differentiable

import stn_triton
from perf.measuring.providers import Provider, Sampler, UnavailableError
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


def sampler(
    input: Tensor, theta: Tensor, size: Sequence[int], antialias: int = 0, **options: str | bool
) -> Tensor:
    """The operator, whose backward is the scatter; antialiased if a factor is given."""
    lacking = [f"{name}={options[name]!r}" for name in ("fill_value", "image_index") if name in options]
    if theta.ndim != 3 or len(theta) != len(input):
        lacking.append(f"theta of shape {tuple(theta.shape)}, only one matrix per image")
    if not input.dtype.is_floating_point:
        lacking.append(f"gradients of {str(input.dtype).removeprefix('torch.')} images")
    if lacking:
        raise UnavailableError(f"the scatter is measured without {', '.join(lacking)}")
    return _Scatter.apply(input, theta, size, {**options, "antialias": antialias > 0})


def _make() -> Sampler:
    """Named, so that other processes can be sent the provider."""
    return sampler


SCATTER = Provider(
    "scatter",
    "fused scatter",
    "the operator, with both gradients by atomic additions in one pass over the output",
    _make,
    may_be_unavailable=True,
)
