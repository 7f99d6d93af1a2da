"""The operators as PyTorch's dispatcher sees them: schemas, implementations and fakes.

All are functional and opaque: ``torch.compile`` calls them without looking inside. Triton is imported by
``stn_triton.launch``, on the first call with a CUDA tensor. What connects them (gradients, tangents, vmap) is
in ``derivatives`` and ``batching``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from stn_triton import limits, reference, reference_tangent, splines
from stn_triton.options import Options, Tangents

library = torch.library.Library("stn_triton", "DEF")
# Outputs follow the strides of the inputs, so a compiler must hand over the strides it was promised.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_OPTIONS = "str mode, str padding_mode, bool align_corners, bool antialias, float[] points"
_TENSORS = "Tensor input, Tensor theta, Tensor? fill, Tensor? image_index"
_TANGENTS = "Tensor? input_tangent, Tensor theta_tangent, Tensor? fill_tangent"
_GRADS = "(Tensor, Tensor, Tensor)"
for _signature in (
    f"affine_grid_sample({_TENSORS}, SymInt[] size, {_OPTIONS}) -> Tensor",
    f"affine_grid_sample_backward(Tensor grad_output, {_TENSORS}, {_OPTIONS}, bool[3] output_mask) "
    f"-> {_GRADS}",
    f"affine_grid_sample_tangent({_TENSORS}, {_TANGENTS}, SymInt[] size, {_OPTIONS}) -> Tensor",
    f"affine_grid_sample_tangent_backward(Tensor grad_output, {_TENSORS}, {_TANGENTS}, {_OPTIONS}, "
    f"bool[3] output_mask) -> {_GRADS}",
):
    library.define(_signature, tags=_TAGS)

affine_grid_sample = torch.ops.stn_triton.affine_grid_sample.default
affine_grid_sample_backward = torch.ops.stn_triton.affine_grid_sample_backward.default
affine_grid_sample_tangent = torch.ops.stn_triton.affine_grid_sample_tangent.default
affine_grid_sample_tangent_backward = torch.ops.stn_triton.affine_grid_sample_tangent_backward.default


def _launch() -> ModuleType:
    """Imported on the first call: it imports Triton."""
    from stn_triton import launch

    return launch


def _implementations(plain: Callable[[], ModuleType], tangent: Callable[[], ModuleType]):
    """The four operators on modules of the package, which know a spline by its matrix.

    A gradient that was not asked for is None.
    """

    def forward(input, theta, fill, image_index, size, *options):
        options = _options(options)
        limits.check(input, theta.shape[0], size, options.antialias)
        return plain().forward(input, _matrices(input, theta, options), size, options, fill, image_index)

    def backward(grad_output, input, theta, fill, image_index, *rest):
        *options, mask = rest
        options = _options(options)
        limits.check(input, theta.shape[0], grad_output.shape[2:], options.antialias)
        matrices = _matrices(input, theta, options)
        grads = plain().backward(grad_output, input, matrices, options, mask, fill, image_index)
        return _of_theta(grads, theta, options)

    def forward_tangent(input, theta, fill, image_index, d_input, d_theta, d_fill, size, *options):
        options = _options(options)
        limits.check(input, theta.shape[0], size, options.antialias)
        tangents = Tangents(d_input, _directions(input, d_theta, options), d_fill)
        matrices = _matrices(input, theta, options)
        return tangent().forward(input, matrices, size, options, fill, image_index, tangents)

    def backward_tangent(grad_output, input, theta, fill, image_index, d_input, d_theta, d_fill, *rest):
        *options, mask = rest
        options = _options(options)
        limits.check(input, theta.shape[0], grad_output.shape[2:], options.antialias)
        tangents = Tangents(d_input, _directions(input, d_theta, options), d_fill)
        rest = (options, mask, fill, image_index, tangents)
        grads = tangent().backward(grad_output, input, _matrices(input, theta, options), *rest)
        return _of_theta(grads, theta, options)

    return forward, backward, forward_tangent, backward_tangent


def _options(values: Sequence[object]) -> Options:
    *values, points = values
    return Options(*values, tuple(points))


def _matrices(input: Tensor, theta: Tensor, options: Options) -> Tensor:
    if not options.points:
        return theta
    return splines.coefficients(theta, options.points, reference.coordinate_dtype(input.dtype))


def _directions(input: Tensor, d_theta: Tensor, options: Options) -> Tensor:
    if not options.points:
        return d_theta
    return splines.directions(d_theta, options.points, reference.coordinate_dtype(input.dtype))


def _of_theta(grads: tuple[Tensor | None, ...], theta: Tensor, options: Options) -> tuple[Tensor | None, ...]:
    """The gradients, that of a spline's matrix as that of its offsets."""
    grad_input, grad_theta, grad_fill = grads
    if options.points and grad_theta is not None:
        grad_theta = splines.grad_offsets(grad_theta, options.points, theta.dtype)
    return grad_input, grad_theta, grad_fill


def _filling(implementation: Callable[..., object]) -> Callable[..., object]:
    """An operator of an implementation of gradients."""

    def operator(grad_output, input, theta, *rest):
        return filled(implementation(grad_output, input, theta, *rest), input, theta)

    return operator


def filled(grads: Sequence[Tensor | None], input: Tensor, theta: Tensor) -> tuple[Tensor, ...]:
    """An operator returns tensors: an empty one stands for a gradient that was not asked for."""
    likes = (input, theta, theta)
    return tuple(like.new_empty(0) if grad is None else grad for grad, like in zip(grads, likes, strict=True))


def _fake_output(input, theta, size, options):
    limits.check_known(input, theta.shape[0], size, _options(options).antialias)
    output = input.new_empty(theta.shape[0], input.shape[1], *size)
    return output.contiguous(memory_format=reference.memory_format(input, size))


def _fake_forward(input, theta, fill, image_index, size, *options):
    return _fake_output(input, theta, size, options)


def _fake_forward_tangent(input, theta, fill, image_index, d_input, d_theta, d_fill, size, *options):
    return _fake_output(input, theta, size, options)


def _fake_backward(grad_output, input, theta, fill, image_index, *rest):
    wanted = rest[-1]
    form = reference.memory_format(input, input.shape[2:])
    grads = (
        input.new_empty(input.shape).contiguous(memory_format=form) if wanted[0] else None,
        theta.new_empty(theta.shape) if wanted[1] else None,
        fill.new_empty(fill.shape) if wanted[2] else None,
    )
    return filled(grads, input, theta)


def operators(implementations: Sequence[Callable[..., object]]) -> dict[torch._ops.OpOverload, Callable]:
    """What the dispatcher calls for each operator, given its four implementations."""
    forward, backward, forward_tangent, backward_tangent = implementations
    functions = (forward, _filling(backward), forward_tangent, _filling(backward_tangent))
    return dict(zip(OPERATORS, functions, strict=True))


OPERATORS = (
    affine_grid_sample,
    affine_grid_sample_backward,
    affine_grid_sample_tangent,
    affine_grid_sample_tangent_backward,
)
_CPU = _implementations(lambda: reference, lambda: reference_tangent)
_CUDA = _implementations(_launch, _launch)
direct = {
    "cpu": dict(zip(OPERATORS, _CPU, strict=True)),
    "cuda": dict(zip(OPERATORS, _CUDA, strict=True)),
}
"""The implementations by device and operator, for calls that need nothing of the dispatcher."""

for _key, _all in (("CPU", _CPU), ("CUDA", _CUDA)):
    for _op, _function in operators(_all).items():
        library.impl(_op.name().removesuffix(".default"), _function, _key)
for _op, _fake in zip(
    OPERATORS, (_fake_forward, _fake_backward, _fake_forward_tangent, _fake_backward), strict=True
):
    torch.library.register_fake(_op.name().removesuffix(".default"), _fake, lib=library)
