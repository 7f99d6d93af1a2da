"""Support for tracers, which record calls, and for tensor subclasses, which may override them.

``torch.fx`` calls with proxies, which have no values, and tensor subclasses have ``__torch_function__``. Both
get a call as a whole from a function that is ``overridable``.

``torch.jit.trace`` calls with tensors; TensorBoard's graphs, counters of operations and the older ONNX
exporter use it. While a call is recorded, the sizes of tensors are tensors: computations with sizes are
recorded, and the trace works for other sizes. Code that only checks a size must do so ``untraced``, or
PyTorch warns and the trace gets a superfluous node.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, fx
from torch.overrides import handle_torch_function, has_torch_function

P = ParamSpec("P")
R = TypeVar("R")


def overridable(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: ``__torch_function__`` of an argument may override the call, as for PyTorch's functions."""

    @functools.wraps(function)
    def overridden(*args: P.args, **kwargs: P.kwargs) -> R:
        # Two checks, because a tuple of all arguments would double the cost for each call.
        if has_torch_function(args) or (kwargs and has_torch_function(tuple(kwargs.values()))):
            return handle_torch_function(overridden, (*args, *kwargs.values()), *args, **kwargs)
        return function(*args, **kwargs)

    # Each function gets its own code object: Dynamo limits the number of compilations of one code object.
    overridden.__code__ = overridden.__code__.replace(co_name=function.__name__)
    return overridden


def without_annotations(forward: Callable[P, R]) -> Callable[P, R]:
    """Decorator for ``forward`` of a module: ``torch.fx`` cannot pickle annotations that are strings."""
    forward.__annotations__ = {}
    return forward


def is_recording() -> bool:
    """Whether ``torch.jit.trace`` records in this thread."""
    return torch._C._get_tracing_state() is not None


def is_exporting() -> bool:
    """Whether ``torch.jit.trace`` records for the older ONNX exporter."""
    return is_recording() and torch.onnx.is_in_onnx_export()


def untraced(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function without recording it; inside, sizes of tensors are ints."""
    state = torch._C._get_tracing_state()
    if state is None:
        return function(*args, **kwargs)
    torch._C._set_tracing_state(None)
    try:
        return function(*args, **kwargs)
    finally:
        torch._C._set_tracing_state(state)


def reads_sizes(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator for a function that is always called ``untraced``."""

    @functools.wraps(function)
    def unrecorded(*args: P.args, **kwargs: P.kwargs) -> R:
        return untraced(function, *args, **kwargs)

    return unrecorded


def check(function: Callable[P, None]) -> Callable[P, None]:
    """Decorator for a function that only raises errors: called ``untraced``, and not at all with proxies."""

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        if not any(isinstance(value, fx.Proxy) for value in args):
            untraced(function, *args, **kwargs)

    return checked


def shape_of(tensor: Tensor) -> torch.Size:
    """The shape in ints. Only for sizes that are the same for all inputs of a trace."""
    return untraced(getattr, tensor, "shape")


def exportable_shape_of(tensor: Tensor) -> torch.Size:
    """The shape, in ints for the older ONNX exporter. For operators that it exports only with ints."""
    return shape_of(tensor) if is_exporting() else tensor.shape


def zeros_like(tensor: Tensor) -> Tensor:
    """``torch.zeros_like``, without the fixed shape that the older ONNX exporter might give it."""
    return tensor.isnan().to(tensor.dtype) * 0 if is_exporting() else torch.zeros_like(tensor)


def at_least(least: int, n: int | Tensor) -> int | Tensor:
    """The larger of an int and a number that may be recorded."""
    return n.clamp(min=least) if isinstance(n, Tensor) else max(n, least)


def at_most(most: int, n: int | Tensor) -> int | Tensor:
    """The smaller of an int and a number that may be recorded."""
    return n.clamp(max=most) if isinstance(n, Tensor) else min(n, most)


def recorded_size(size: object, checked: list[int]) -> list[int | Tensor]:
    """``size`` with one entry per axis: tensors, which are recorded, or entries of ``checked``."""
    if isinstance(size, Tensor):
        return [size] * len(checked) if size.ndim == 0 else list(size.unbind())
    if isinstance(size, Sequence):
        return [n if isinstance(n, Tensor) else number for n, number in zip(size, checked, strict=True)]
    return checked


def matrices_for_all(theta: Tensor, input: Tensor, image_index: Tensor | None) -> Tensor:
    """``theta`` (M, ...) with one matrix per output, recorded for any number of images and matrices."""
    if image_index is not None:
        count = image_index.shape[0]
    else:
        images, matrices = input.shape[0], theta.shape[0]
        count = torch.where(images == 1, matrices, images)
    return theta.expand(count, *theta.shape[1:])


def recorded_call(op: torch._ops.OpOverload, values: Sequence[object]) -> object:
    """Call an operator with ``values`` for its schema, in which sizes may be recorded tensors."""
    names = [argument.name for argument in op._schema.arguments]
    if "size" not in names:
        return op(*values)
    values, place = list(values), names.index("size")
    values[place] = [n if isinstance(n, Tensor) else untraced(torch.tensor, n) for n in values[place]]
    return _program(op, len(values[place]))(*values)


@functools.cache
def _program(op: torch._ops.OpOverload, axes: int) -> Callable[..., object]:
    """A TorchScript function that calls the operator with a size of so many tensors.

    A call from Python would be recorded with ints. The function is compiled like by ``torch.jit.script``,
    which needs a source file, under a name that can be saved.
    """
    types = {argument.name: argument.type.annotation_str for argument in op._schema.arguments}
    declared = ", ".join(f"{name}: {kind}" for name, kind in {**types, "size": "List[Tensor]"}.items())
    size = ", ".join(f"int(size[{axis}])" for axis in range(axes))
    passed = ", ".join(f"[{size}]" if name == "size" else name for name in types)
    name = f"{op._opname}_{axes}d"
    source = f"def {name}({declared}):\n    return torch.ops.{op.namespace}.{op._opname}({passed})\n"
    definition = torch._C._parse_source_def(source)
    return torch._C._jit_script_compile(
        f"__torch__.{op.namespace}.{name}", definition, {"torch": torch}.get, {}
    )
