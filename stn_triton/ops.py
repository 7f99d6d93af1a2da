"""The two operators as PyTorch sees them: schemas, implementations, fakes, autograd and vmap.

Both are functional and opaque: ``torch.compile`` calls them without looking inside. Triton is imported by
``stn_triton.launch``, on the first call with a CUDA tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from stn_triton import reference

_library = torch.library.Library("stn_triton", "DEF")
# Outputs follow the strides of the inputs, so a compiler must hand over the strides it was promised.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_library.define(
    "affine_grid_sample(Tensor input, Tensor theta, SymInt[] size, str mode, str padding_mode, "
    "bool align_corners) -> Tensor",
    tags=_TAGS,
)
_library.define(
    "affine_grid_sample_backward(Tensor grad_output, Tensor input, Tensor theta, str mode, "
    "str padding_mode, bool align_corners, bool[2] output_mask) -> (Tensor, Tensor)",
    tags=_TAGS,
)
affine_grid_sample = torch.ops.stn_triton.affine_grid_sample.default
affine_grid_sample_backward = torch.ops.stn_triton.affine_grid_sample_backward.default


def refuse_forward_mode(*tensors: Tensor) -> None:
    """PyTorch would return a zero tangent for an operator without a forward-mode rule.

    Under ``torch.compile`` too: Dynamo follows ``torch.func.jvp``.
    """
    if forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError("affine_grid_sample has no forward-mode derivative")


def _forward_cpu(input, theta, size, mode, padding_mode, align_corners):
    return reference.forward(input, theta, size, align_corners)


def _backward_cpu(grad_output, input, theta, mode, padding_mode, align_corners, output_mask):
    grads = reference.backward(grad_output, input, theta, align_corners, output_mask)
    return _fill_unwanted(grads, input, theta)


def _forward_cuda(input, theta, size, mode, padding_mode, align_corners):
    from stn_triton import launch

    return launch.forward(input, theta, size, align_corners)


def _backward_cuda(grad_output, input, theta, mode, padding_mode, align_corners, output_mask):
    from stn_triton import launch

    grads = launch.backward(grad_output, input, theta, align_corners, output_mask)
    return _fill_unwanted(grads, input, theta)


def _fill_unwanted(grads: Sequence[Tensor | None], input: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """An operator returns tensors: an empty one stands for a gradient that was not asked for."""
    grad_input, grad_theta = grads
    return (
        input.new_empty(0) if grad_input is None else grad_input,
        theta.new_empty(0) if grad_theta is None else grad_theta,
    )


def _forward_fake(input, theta, size, mode, padding_mode, align_corners):
    output = input.new_empty(input.shape[0], input.shape[1], *size)
    return output.contiguous(memory_format=reference.memory_format(input))


def _backward_fake(grad_output, input, theta, mode, padding_mode, align_corners, output_mask):
    grad_input = grad_theta = None
    if output_mask[0]:
        grad_input = input.new_empty(input.shape).contiguous(memory_format=reference.memory_format(input))
    if output_mask[1]:
        grad_theta = theta.new_empty(theta.shape)
    return _fill_unwanted((grad_input, grad_theta), input, theta)


def _setup_context(ctx, inputs, output):
    input, theta, _, *ctx.options = inputs
    ctx.save_for_backward(input, theta)


def _autograd(ctx, grad_output):
    input, theta = ctx.saved_tensors
    refuse_forward_mode(grad_output)
    output_mask = list(ctx.needs_input_grad[:2])
    grads = affine_grid_sample_backward(grad_output, input, theta, *ctx.options, output_mask)
    grad_input, grad_theta = (
        grad if wanted else None for grad, wanted in zip(grads, output_mask, strict=True)
    )
    return grad_input, grad_theta, None, None, None, None


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError("affine_grid_sample has no second derivative")


def _batched(tensor: Tensor, in_dim: int | None, size: int) -> Tensor:
    """The vmapped dimension in front, or ``size`` copies where there is none."""
    return tensor.expand(size, *tensor.shape) if in_dim is None else tensor.movedim(in_dim, 0)


def _forward_vmap(info, in_dims, *arguments):
    input, theta = (_batched(t, d, info.batch_size) for t, d in zip(arguments[:2], in_dims[:2], strict=True))
    output = affine_grid_sample(input.flatten(0, 1), theta.flatten(0, 1), *arguments[2:])
    return output.unflatten(0, input.shape[:2]), 0


def _backward_vmap(info, in_dims, *arguments):
    tensors = [_batched(t, d, info.batch_size) for t, d in zip(arguments[:3], in_dims[:3], strict=True)]
    wanted = arguments[-1]
    grads = affine_grid_sample_backward(*(t.flatten(0, 1) for t in tensors), *arguments[3:])
    shape = tensors[0].shape[:2]
    grads = tuple(g.unflatten(0, shape) if w else g for g, w in zip(grads, wanted, strict=True))
    return grads, tuple(0 if w else None for w in wanted)


for _name, _cpu, _cuda, _fake, _vmap in (
    ("affine_grid_sample", _forward_cpu, _forward_cuda, _forward_fake, _forward_vmap),
    ("affine_grid_sample_backward", _backward_cpu, _backward_cuda, _backward_fake, _backward_vmap),
):
    _library.impl(_name, _cpu, "CPU")
    _library.impl(_name, _cuda, "CUDA")
    torch.library.register_fake(f"stn_triton::{_name}", _fake, lib=_library)
    torch.library.register_vmap(f"stn_triton::{_name}", _vmap, lib=_library)
torch.library.register_autograd(
    "stn_triton::affine_grid_sample", _autograd, setup_context=_setup_context, lib=_library
)
torch.library.register_autograd(
    "stn_triton::affine_grid_sample_backward", _no_second_derivative, lib=_library
)
