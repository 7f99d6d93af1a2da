"""Derivatives of the operators in reverse and forward mode: most are operators themselves.

Let y = S(input, theta, fill), which is linear in input and fill. There are four operators:

    affine_grid_sample                    S: y
    affine_grid_sample_backward           B: the gradients of <g, y> for input, theta and fill
    affine_grid_sample_tangent            J: the tangent of y along tangents of input, theta and fill
    affine_grid_sample_tangent_backward   R: the gradients of <g, J> for input, theta and fill

S has the tangent J and the gradients B. B has the gradients J for g and R for its other arguments; since
derivatives can be taken in any order, its tangent is R plus B of g's tangent. J has the gradients B for its
tangents and R for its other arguments. R has no derivatives here: third derivatives raise.

The formulas are ``autograd.Function``s. ``torch.func`` needs Functions with ``setup_context``. Eager mode and
direct calls of an operator use Functions without it, which cost less (``python -m perf overhead``). Compiled
code calls the operator: with Functions under ``torch.func`` PyTorch would be wrong (pytorch#193279).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad
from torch.autograd.function import Function, _SingleLevelFunction

from stn_triton import batching, decomposition, ops, tracing
from stn_triton.options import Options
from stn_triton.reference_tangent import linear_tangents
from stn_triton.signatures import Signature, flat

# By operator: the Functions for ``torch.func``, and those for eager mode.
_FUNCTIONS: dict[torch._ops.OpOverload, type[Function]] = {}
_EAGER: dict[torch._ops.OpOverload, type[_SingleLevelFunction]] = {}


def sample(*arguments: object) -> Tensor:
    """Call ``ops.affine_grid_sample`` with derivatives. Derivatives of a uint8 input raise ValueError.

    ``"nearest"`` has no derivative for theta, so a theta that requires gradients may warp uint8 or labels.

    This and the next three functions take the ``arguments`` of their operator's signature.
    """
    if not arguments[0].is_floating_point():
        input, theta, fill, *rest = arguments
        options = rest[-1]
        if options.mode == "nearest" and not options.antialias:
            theta = theta.detach()
        _check_no_derivatives(theta=theta, fill_value=fill)
        arguments = (input, theta, fill, *rest)
    return _call(ops.affine_grid_sample, arguments)


def sample_backward(*arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    """Call ``ops.affine_grid_sample_backward`` with derivatives."""
    return _call(ops.affine_grid_sample_backward, arguments)


def tangent(*arguments: object) -> Tensor:
    """J: ``ops.affine_grid_sample_tangent`` with gradients."""
    return _call(ops.affine_grid_sample_tangent, arguments)


def tangent_backward(*arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    """R: ``ops.affine_grid_sample_tangent_backward``, whose derivatives raise."""
    return _call(ops.affine_grid_sample_tangent_backward, arguments)


def _check_no_derivatives(**tensors: Tensor | None) -> None:
    """Raise ValueError if a uint8 result needs a derivative. For batched tensors ``vmap``'s rule checks."""
    hint = "for a uint8 input, whose result is rounded; convert input to a floating dtype"
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} must not require gradients {hint}, or call under torch.no_grad()")
        if forward_ad._current_level < 0 or torch._C._functorch.is_batchedtensor(tensor):
            continue
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise ValueError(f"{name} must not have a tangent {hint}")


def _call(op: torch._ops.OpOverload, arguments: Sequence[object]) -> object:
    if torch.compiler.is_compiling():
        _refuse_forward_mode(arguments)
        return op(*flat(arguments))
    if tracing.is_recording():
        if op is ops.affine_grid_sample and tracing.is_exporting():
            return decomposition.sample(*arguments)
        return tracing.recorded_call(op, flat(arguments))
    if torch._C._are_functorch_transforms_active():
        transform = torch._C._functorch.peek_interpreter_stack().key()
        if transform == torch._C._functorch.TransformType.Functionalize:  # it has no rule for Functions
            return op(*flat(arguments))
        return _FUNCTIONS[op].apply(*arguments)
    return _eager_call(op, arguments)


def _eager_call(op: torch._ops.OpOverload, arguments: Sequence[object]) -> object:
    # Without the dispatcher where nothing else could intercept the call: the dispatcher takes arguments to
    # C++ and back, a fifth of the call's host time.
    device = arguments[0].device.type
    if device in ops.direct and _is_plain(arguments, device):
        call = ops.direct[device][op]
    else:
        call = functools.partial(_dispatch, op)
        arguments = unwrap_dead_wrappers(arguments)  # wrappers of transforms that have ended
    is_recorded = forward_ad._current_level >= 0
    if torch.is_grad_enabled() and not is_recorded:
        is_recorded = any(isinstance(a, Tensor) and a.requires_grad for a in arguments)
    return _EAGER[op].apply(*arguments, call) if is_recorded else _below_autograd(call, arguments)


def _dispatch(op: torch._ops.OpOverload, *arguments: object) -> object:
    # As in PyTorch's own derivatives, tensor subclasses do not intercept: results are plain tensors.
    with torch._C.DisableTorchFunctionSubclass():
        return op(*flat(arguments))


def _below_autograd(call: Callable[..., object], arguments: Sequence[object]) -> object:
    """Call without autograd: there is nothing to record."""
    with torch._C._AutoDispatchBelowAutograd():
        return call(*arguments)


def _is_plain(arguments: Sequence[object], device: str) -> bool:
    """Whether all tensors are ordinary ones on a device, and no mode, profiler or tracer is active.

    Observers of all threads at once, such as ``torch.profiler.ExecutionTraceObserver``, are not noticed.
    """
    if (
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._autograd._profiler_enabled()
        or torch._C._get_tracing_state() is not None
    ):
        return False
    keys = _plain_keys(device)
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    return not any(
        type(t) not in _PLAIN_TYPES or torch._C._dispatch_keys(t).raw_repr() not in keys for t in tensors
    )


_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


@functools.cache
def _plain_keys(device: str) -> frozenset[int]:
    """The dispatch keys of ordinary tensors: not sparse, negated, of a transform or of a subclass."""
    kinds = []
    for is_inference in (False, True):
        with torch.inference_mode(is_inference):
            kinds.append(torch.empty(0, device=device))
    return frozenset(torch._C._dispatch_keys(tensor).raw_repr() for tensor in kinds)


def _refuse_forward_mode(arguments: Sequence[object]) -> None:
    """Raise NotImplementedError for a tensor with a tangent: Dynamo would make the result's tangent zero."""
    if forward_ad._current_level < 0:
        return
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError("affine_grid_sample has no forward-mode derivative under torch.compile")


def _moved(
    input: Tensor,
    theta: Tensor,
    fill: Tensor | None,
    image_index: Tensor | None,
    tangents: Sequence[Tensor | None],
    size: Sequence[int],
    options: Options,
) -> Tensor | None:
    """The tangent of S; None if all ``tangents`` are None."""
    if tangents[1] is not None:
        return tangent(input, theta, fill, image_index, *tangents, size, options)
    linear = linear_tangents(input, fill, tangents)
    return None if linear is None else sample(linear[0], theta, linear[1], image_index, size, options)


def _gradients_moved(
    grad_output: Tensor,
    input: Tensor,
    theta: Tensor,
    fill: Tensor | None,
    image_index: Tensor | None,
    tangents: Sequence[Tensor | None],
    options: Options,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of <grad_output, tangent of S> for input, theta and fill; None if unwanted or zero."""
    if not any(mask):
        return None, None, None
    if tangents[1] is not None:
        arguments = (grad_output, input, theta, fill, image_index, *tangents, options, list(mask))
        return _wanted(tangent_backward(*arguments), mask)
    linear = linear_tangents(input, fill, tangents)
    if linear is None or not mask[1]:
        return None, None, None
    mask = [False, True, False]
    arguments = (grad_output, linear[0], theta, linear[1], image_index, options, mask)
    return _wanted(sample_backward(*arguments), mask)


def _wanted(grads: Sequence[Tensor | None], mask: Sequence[bool]) -> tuple[Tensor | None, ...]:
    return tuple(grad if is_wanted else None for grad, is_wanted in zip(grads, mask, strict=True))


def _formulas_of(
    op: torch._ops.OpOverload, call: Callable[..., object]
) -> Callable[[type[Function]], type[Function]]:
    """Decorator for a Function with the derivatives of an operator; adds all that follows from its signature.

    ``backward`` of the Function may return gradients for the first arguments only. ``call`` is the operator
    with derivatives.
    """
    signature = ops.SIGNATURES[op]
    count = len(signature.tensors)

    def complete(function: type[Function]) -> type[Function]:
        formula = function.backward

        def forward(*arguments):  # no partial: PyTorch inspects the signature at each call
            return _dispatch(op, *arguments)

        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs[:count])
            if forward_ad._current_level >= 0:
                ctx.save_for_forward(*inputs[:count])
            ctx.rest = inputs[count:]
            ctx.set_materialize_grads(False)

        def backward(ctx, *grads):
            found = formula(ctx, *grads)
            return *found, *[None] * (len(signature.arguments) - len(found))

        function.forward = staticmethod(forward)
        function.setup_context, function.backward = staticmethod(setup_context), staticmethod(backward)
        function.vmap = staticmethod(batching.rule(call, signature))
        _FUNCTIONS[op] = function
        _EAGER[op] = _without_setup_context(function, signature)
        return function

    return complete


def _without_setup_context(function: type[Function], signature: Signature) -> type[_SingleLevelFunction]:
    """A cheaper Function with the same formulas, for eager mode; ``torch.func`` refuses it.

    The last argument is a function that computes the result: the operator, or its implementation.
    """

    def forward(ctx, *arguments):
        *arguments, call = arguments
        function.setup_context(ctx, arguments, None)
        result = _below_autograd(call, arguments)
        return ops.filled(result, *arguments[1:3]) if signature.is_gradient else result

    def backward(ctx, *grads):
        return *function.backward(ctx, *grads), None

    body = {"forward": forward, "backward": backward, "jvp": function.jvp}
    functions = {name: staticmethod(f) for name, f in body.items()}
    return type(function.__name__, (_SingleLevelFunction,), functions)


@_formulas_of(ops.affine_grid_sample, sample)
class _Sample(Function):
    @staticmethod
    def backward(ctx, grad_output):
        if grad_output is None:
            return ()
        _, options = ctx.rest
        mask = list(ctx.needs_input_grad[:3])
        return _wanted(sample_backward(grad_output, *ctx.saved_tensors, options, mask), mask)

    @staticmethod
    def jvp(ctx, *tangents):
        return _moved(*ctx.saved_tensors, tangents[:3], *ctx.rest)


@_formulas_of(ops.affine_grid_sample_backward, sample_backward)
class _SampleBackward(Function):
    @staticmethod
    def backward(ctx, *grads):
        options, mask = ctx.rest
        grads = _wanted(grads, mask)
        grad_output, *tensors = ctx.saved_tensors
        moved = None
        if ctx.needs_input_grad[0]:
            moved = _moved(*tensors, grads, list(grad_output.shape[2:]), options)
        return moved, *_gradients_moved(grad_output, *tensors, grads, options, ctx.needs_input_grad[1:4])

    @staticmethod
    def jvp(ctx, of_grad_output, *tangents):
        options, mask = ctx.rest
        grad_output, *tensors = ctx.saved_tensors
        results = list(_gradients_moved(grad_output, *tensors, tangents[:3], options, mask))
        if of_grad_output is not None:
            linear = _wanted(sample_backward(of_grad_output, *tensors, options, mask), mask)
            pairs = zip(results, linear, strict=True)
            results = [a if b is None else b if a is None else a + b for a, b in pairs]
        likes = (tensors[0], tensors[1], tensors[2] if mask[2] else tensors[1])
        shapes = [t.shape if w else (0,) for t, w in zip(tensors[:3], mask, strict=True)]
        return tuple(
            like.new_zeros(shape) if result is None else result
            for result, like, shape in zip(results, likes, shapes, strict=True)
        )


@_formulas_of(ops.affine_grid_sample_tangent, tangent)
class _Tangent(Function):
    @staticmethod
    def backward(ctx, grad_output):
        if grad_output is None:
            return ()
        _, options = ctx.rest
        tensors, tangents = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        needs = ctx.needs_input_grad
        grads = _gradients_moved(grad_output, *tensors, tangents, options, needs[:3])
        tangent_grads = (None, None, None)
        mask = list(needs[4:7])
        if any(mask):
            tangent_grads = _wanted(sample_backward(grad_output, *tensors, options, mask), mask)
        return *grads, None, *tangent_grads

    @staticmethod
    def jvp(ctx, *tangents):
        raise NotImplementedError(
            "affine_grid_sample has no forward-mode derivative of a tangent: one of two derivatives must be "
            "taken in reverse mode, and there is no third derivative"
        )


@_formulas_of(ops.affine_grid_sample_tangent_backward, tangent_backward)
class _TangentBackward(Function):
    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError("affine_grid_sample has no third derivative")

    @staticmethod
    def jvp(ctx, *tangents):
        raise NotImplementedError("affine_grid_sample has no third derivative")


def _call_itself(op: torch._ops.OpOverload, *arguments: object) -> object:
    """Implement ``Autograd`` for direct calls of an operator, by compiled and exported programs."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"{op.name()} has no rule for transforms of torch.func, for which an autograd.Function must "
            "override the setup_context staticmethod; call the functions of stn_triton, which have rules"
        )
    return _eager_call(op, arguments)


for _op, _kernel in ops.operators({op: functools.partial(_call_itself, op) for op in ops.OPERATORS}).items():
    torch.library.register_vmap(_op, batching.rule(_op, ops.SIGNATURES[_op]), lib=ops.library)
    # Not torch.library.register_autograd, which has no forward mode and drops tangents silently.
    ops.library.impl(_op, _kernel, "Autograd")
