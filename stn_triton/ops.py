"""The operators as PyTorch's dispatcher sees them: schemas, implementations and fakes.

All are functional and opaque: ``torch.compile`` calls them without looking inside. Triton is imported by
``stn_triton.launch``, on the first call with a CUDA tensor. ``derivatives`` and ``batching`` connect the
operators (gradients, tangents, vmap); ``signatures`` has the order of their arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor

from stn_triton import contract, limits, reference, reference_tangent, splines
from stn_triton.options import Options, Tangents
from stn_triton.signatures import Signature

library = torch.library.Library("stn_triton", "DEF")
# Outputs follow the strides of the inputs, so compiled code must pass inputs with the strides that it saw.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
SIGNATURES: dict[torch._ops.OpOverload, Signature] = {}
for _has_tangents in (False, True):
    for _is_gradient in (False, True):
        _signature = Signature(is_gradient=_is_gradient, has_tangents=_has_tangents)
        library.define(_signature.schema, tags=_TAGS)
        SIGNATURES[getattr(torch.ops.stn_triton, _signature.name).default] = _signature
OPERATORS = tuple(SIGNATURES)
(
    affine_grid_sample,
    affine_grid_sample_backward,
    affine_grid_sample_tangent,
    affine_grid_sample_tangent_backward,
) = OPERATORS
Implementations = Mapping[torch._ops.OpOverload, Callable[..., object]]
"""An implementation for each operator, called with the ``arguments`` of its signature."""


def _launch() -> ModuleType:
    """Import ``launch`` on the first call, because it imports Triton."""
    from stn_triton import launch

    return launch


def _implementations(plain: Callable[[], ModuleType], tangent: Callable[[], ModuleType]) -> Implementations:
    """Implementations of the operators by modules of the package; an unwanted gradient is None."""
    return {
        op: functools.partial(
            _backward if signature.is_gradient else _forward, tangent if signature.has_tangents else plain
        )
        for op, signature in SIGNATURES.items()
    }


def _forward(module_of, input, theta, fill, image_index, *rest):
    *tangents, size, options = rest
    limits.check(input, theta.shape[0], size, options.antialias)
    matrices, *tangents = _of_matrices(input, theta, tangents, options)
    return module_of().forward(input, matrices, fill, image_index, *tangents, size=size, options=options)


def _backward(module_of, grad_output, input, theta, fill, image_index, *rest):
    *tangents, options, mask = rest
    limits.check(input, theta.shape[0], grad_output.shape[2:], options.antialias)
    matrices, *tangents = _of_matrices(input, theta, tangents, options)
    grads = module_of().backward(
        grad_output, input, matrices, fill, image_index, *tangents, options=options, output_mask=mask
    )
    if options.points and mask[1]:
        grad_input, grad_matrices, grad_fill = grads
        return grad_input, splines.grad_offsets(grad_matrices, options.points, theta.dtype), grad_fill
    return grads


def _of_matrices(
    input: Tensor, theta: Tensor, tangents: Sequence[Tensor | None], options: Options
) -> tuple[Tensor] | tuple[Tensor, Tangents]:
    """Theta, and ``Tangents`` if there are any, with the matrices of a spline instead of its offsets."""
    if options.points:
        dtype = contract.coordinate_dtype(input.dtype)
        theta = splines.coefficients(theta, options.points, dtype)
    if not tangents:
        return (theta,)
    d_input, d_theta, d_fill = tangents
    if options.points:
        d_theta = splines.directions(d_theta, options.points, dtype)
    return theta, Tangents(d_input, d_theta, d_fill)


def filled(grads: Sequence[Tensor | None], input: Tensor, theta: Tensor) -> tuple[Tensor, ...]:
    """Replace unwanted gradients, which are None, by empty tensors: an operator returns tensors only."""
    likes = (input, theta, theta)
    return tuple(
        like.new_empty((0,)) if grad is None else grad for grad, like in zip(grads, likes, strict=True)
    )


def _fake_forward(input, theta, *rest):
    size, options = rest[-2:]
    limits.check_known(input, theta.shape[0], size, options.antialias)
    output = input.new_empty((theta.shape[0], input.shape[1], *size))
    return output.contiguous(memory_format=contract.memory_format(input, size))


def _fake_backward(grad_output, input, theta, fill, *rest):
    wanted = rest[-1]
    form = contract.memory_format(input, input.shape[2:])
    return (
        input.new_empty(input.shape).contiguous(memory_format=form) if wanted[0] else None,
        theta.new_empty(theta.shape) if wanted[1] else None,
        fill.new_empty(fill.shape) if wanted[2] else None,
    )


def operators(implementations: Implementations) -> Implementations:
    """Functions for the dispatcher, which take the arguments of the schemas."""

    def operator(signature, implementation, *values):
        arguments = signature.packed(values)
        result = implementation(*arguments)
        return filled(result, *arguments[1:3]) if signature.is_gradient else result

    return {op: functools.partial(operator, SIGNATURES[op], f) for op, f in implementations.items()}


direct = {
    "cpu": _implementations(lambda: reference, lambda: reference_tangent),
    "cuda": _implementations(_launch, _launch),
}
"""The implementations by device and operator, for calls that do not need the dispatcher."""
_FAKES = {op: _fake_backward if s.is_gradient else _fake_forward for op, s in SIGNATURES.items()}


def _of_plain(operator: Callable[..., object]) -> Callable[..., object]:
    """An operator that gets plain tensors: the methods of a subclass may differ from PyTorch's."""

    def plain(value):
        is_other = isinstance(value, Tensor) and type(value) is not Tensor
        return value.as_subclass(Tensor) if is_other else value

    return lambda *values: operator(*map(plain, values))


def _with_sharding_rules(fake: Callable[..., object]) -> Callable[..., object]:
    """A fake that first registers the rules for a DTensor, see ``sharding``."""

    def registering(*values):
        from stn_triton import sharding  # which imports this module

        sharding.register_on_first_use()
        return fake(*values)

    return registering


for _device, _all in direct.items():
    for _op, _function in operators(_all).items():
        library.impl(_op, _of_plain(_function), _device.upper())
for _op, _fake in operators(_FAKES).items():
    torch.library.register_fake(_op, _with_sharding_rules(_fake), lib=library)
