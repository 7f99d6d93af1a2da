"""The two operators as PyTorch sees them: schemas, implementations, fakes, autograd and vmap.

Both are functional and opaque: ``torch.compile`` calls them without looking inside. Triton is imported by
``stn_triton.launch``, on the first call with a CUDA tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from stn_triton import reference
from stn_triton.options import Options

_library = torch.library.Library("stn_triton", "DEF")
# Outputs follow the strides of the inputs, so a compiler must hand over the strides it was promised.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_ARGUMENTS = "str mode, str padding_mode, bool align_corners, bool antialias"
_TENSORS = "Tensor input, Tensor theta, Tensor? fill, Tensor? image_index"
_library.define(f"affine_grid_sample({_TENSORS}, SymInt[] size, {_ARGUMENTS}) -> Tensor", tags=_TAGS)
_library.define(
    f"affine_grid_sample_backward(Tensor grad_output, {_TENSORS}, {_ARGUMENTS}, bool[3] output_mask) "
    "-> (Tensor, Tensor, Tensor)",
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


def _launch():
    """Imported on the first call: it imports Triton."""
    from stn_triton import launch

    return launch


def _implementation(load: Callable[[], ModuleType]):
    """The two operators on a module of the package."""

    def forward(input, theta, fill, image_index, size, *options):
        return load().forward(input, theta, size, Options(*options), fill, image_index)

    def backward(grad_output, input, theta, fill, image_index, *arguments):
        *options, output_mask = arguments
        grads = load().backward(grad_output, input, theta, Options(*options), output_mask, fill, image_index)
        return _fill_unwanted(grads, input, theta)

    return forward, backward


def _fill_unwanted(grads: Sequence[Tensor | None], input: Tensor, theta: Tensor) -> tuple[Tensor, ...]:
    """An operator returns tensors: an empty one stands for a gradient that was not asked for."""
    likes = (input, theta, theta)
    return tuple(like.new_empty(0) if grad is None else grad for grad, like in zip(grads, likes, strict=True))


def _forward_fake(input, theta, fill, image_index, size, *options):
    output = input.new_empty(theta.shape[0], input.shape[1], *size)
    return output.contiguous(memory_format=reference.memory_format(input, size))


def _backward_fake(grad_output, input, theta, fill, image_index, *arguments):
    wanted = arguments[-1]
    form = reference.memory_format(input, input.shape[2:])
    grads = (
        input.new_empty(input.shape).contiguous(memory_format=form) if wanted[0] else None,
        theta.new_empty(theta.shape) if wanted[1] else None,
        fill.new_empty(fill.shape) if wanted[2] else None,
    )
    return _fill_unwanted(grads, input, theta)


def _setup_context(ctx, inputs, output):
    *tensors, _, mode, padding_mode, align_corners, antialias = inputs
    ctx.options = (mode, padding_mode, align_corners, antialias)
    ctx.save_for_backward(*tensors)


def _autograd(ctx, grad_output):
    refuse_forward_mode(grad_output)
    output_mask = list(ctx.needs_input_grad[:3])
    grads = affine_grid_sample_backward(grad_output, *ctx.saved_tensors, *ctx.options, output_mask)
    wanted = (grad if is_wanted else None for grad, is_wanted in zip(grads, output_mask, strict=True))
    return *wanted, None, None, None, None, None, None


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError("affine_grid_sample has no second derivative")


def _batched(tensor: Tensor, in_dim: int | None, size: int) -> Tensor:
    """The vmapped dimension in front, or ``size`` copies where there is none."""
    return tensor.expand(size, *tensor.shape) if in_dim is None else tensor.movedim(in_dim, 0)


def _image_index(input, theta, image_index, dims, size):
    """Of a vmapped call, the image of every matrix; None where each image has equally many in order.

    Images that are not vmapped themselves stay as they are: all calls of the map index the same ones.
    """
    is_shared = dims[0] is None
    if image_index is None and not is_shared:
        return None
    images = input.shape[0] if is_shared else input.shape[1]
    matrices = theta.shape[1]
    if image_index is None:
        image_index = torch.arange(matrices, device=theta.device) // (matrices // max(images, 1))
        image_index = image_index.expand(size, -1)
    else:
        image_index = _batched(image_index, dims[3], size)
    if is_shared:
        return image_index.flatten()
    # An index out of range must not become one of another image.
    first = torch.arange(size, device=theta.device)[:, None] * images
    is_valid = (image_index >= 0) & (image_index < images)
    return torch.where(is_valid, image_index + first, -1).flatten()


def _one_by_one(op, info, in_dims, arguments):
    """A vmapped call as a loop, for what has no batched form: fill values of each call's own."""
    calls = []
    for i in range(info.batch_size):
        chosen = [a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True)]
        calls.append(op(*chosen))
    return calls


def _forward_vmap(info, in_dims, *arguments):
    if in_dims[2] is not None:
        dims = [d if isinstance(a, Tensor) else None for a, d in zip(arguments, in_dims, strict=True)]
        return torch.stack(_one_by_one(affine_grid_sample, info, dims, arguments)), 0
    input, theta, fill, image_index, *rest = arguments
    theta = _batched(theta, in_dims[1], info.batch_size)
    input = input if in_dims[0] is None else input.movedim(in_dims[0], 0)
    image_index = _image_index(input, theta, image_index, in_dims, info.batch_size)
    images = input if in_dims[0] is None else input.flatten(0, 1)
    output = affine_grid_sample(images, theta.flatten(0, 1), fill, image_index, *rest)
    return output.unflatten(0, theta.shape[:2]), 0


def _backward_vmap(info, in_dims, *arguments):
    wanted = arguments[-1]
    grad_output, input, theta, fill, image_index, *rest = arguments
    # Gradients of shared images and fill values are separate for each call.
    if in_dims[3] is not None or wanted[2]:
        dims = [d if isinstance(a, Tensor) else None for a, d in zip(arguments, in_dims, strict=True)]
        calls = _one_by_one(affine_grid_sample_backward, info, dims, arguments)
        grads = tuple(
            torch.stack(g) if w else g[0] for g, w in zip(zip(*calls, strict=True), wanted, strict=True)
        )
        return grads, tuple(0 if w else None for w in wanted)
    grad_output, input, theta = (
        _batched(t, d, info.batch_size) for t, d in zip((grad_output, input, theta), in_dims[:3], strict=True)
    )
    if image_index is not None:
        dims = (0, 0, None, in_dims[4])
        image_index = _image_index(input, theta, image_index, dims, info.batch_size)
    grads = affine_grid_sample_backward(
        grad_output.flatten(0, 1), input.flatten(0, 1), theta.flatten(0, 1), fill, image_index, *rest
    )
    shapes = (input.shape[:2], theta.shape[:2], None)
    grads = tuple(g.unflatten(0, s) if w else g for g, s, w in zip(grads, shapes, wanted, strict=True))
    return grads, tuple(0 if w else None for w in wanted)


_on_cpu = _implementation(lambda: reference)
_on_cuda = _implementation(_launch)
for _name, _cpu, _cuda, _fake, _vmap in (
    ("affine_grid_sample", _on_cpu[0], _on_cuda[0], _forward_fake, _forward_vmap),
    ("affine_grid_sample_backward", _on_cpu[1], _on_cuda[1], _backward_fake, _backward_vmap),
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
