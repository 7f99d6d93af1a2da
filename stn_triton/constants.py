"""Numbers among the arguments of a call, as tensors on its device: copied there once.

A copy from the host waits for the GPU, and is not allowed in a CUDA graph.
"""

from __future__ import annotations

import functools
import reprlib
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Thread

import torch
from torch import Tensor

from stn_triton import tracing

MOST = 64
"""Number of recently used constants kept of each kind. The largest, of 1000 control points, has 8 MB."""
_captured: dict[int, Tensor] = {}

Make = Callable[..., Tensor]
"""Makes a tensor from numbers, on a device; may take further arguments."""


def once_per_device(argument: str) -> Callable[[Make], Make]:
    """Let a function of (numbers, device, ...) make each tensor once. Callers must not write into a tensor.

    Errors name the ``argument`` that the numbers belong to. Numbers are compared bit by bit: NaN equals NaN,
    -0.0 differs from 0.0. Traced code makes its own tensors, because it cannot use existing ones.
    """

    def decorate(make: Make) -> Make:
        @functools.lru_cache(maxsize=MOST)
        def made(packed: bytes, device: torch.device, *rest: object) -> Tensor:
            numbers = tuple(array("d", packed))
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"the numbers of {argument} must be on {device} before a CUDA graph is captured, got new "
                    f"ones, {reprlib.repr(list(numbers))}: make the same call once before the capture"
                )
            return _in_a_new_thread(lambda: make(numbers, device, *rest))

        @functools.wraps(make)
        def constant(numbers: Sequence[float], device: torch.device, *rest: object) -> Tensor:
            if is_traced():
                return make(numbers, device, *rest)
            return _kept(made(array("d", numbers).tobytes(), device, *rest))

        constant.cache_clear = made.cache_clear
        return constant

    return decorate


def numbers_of(argument: str) -> Callable[[Sequence[float], torch.device, torch.dtype], Tensor]:
    """Make a function that turns the numbers of an argument into a tensor (n,) of a device and a dtype."""

    @once_per_device(argument)
    def on_device(numbers: Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
        return tensor_of(numbers, device, dtype)

    def tensor(numbers: Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
        # A CPU does not wait for a copy, and a look-up would take as long.
        if device.type == "cpu" or _is_open(numbers):
            return tensor_of(numbers, device, dtype)
        return on_device(numbers, device, dtype)

    return tensor


def tensor_of(numbers: float | Sequence, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    """Make a tensor like ``torch.tensor``, but keep symbolic numbers symbolic in a traced program.

    The program fills them in on the device. PyTorch would fix them, or copy them from the host at each call.
    """
    if not _is_open(numbers):
        return tracing.untraced(torch.tensor, numbers, dtype=dtype, device=device)
    if isinstance(numbers, (list, tuple)):
        return torch.stack([tensor_of(number, device, dtype) for number in numbers])
    if isinstance(numbers, Tensor):  # a size that a trace has recorded
        return numbers.to(device=device, dtype=dtype)
    return torch.full((), numbers, dtype=dtype, device=device)


def _is_open(numbers: object) -> bool:
    if isinstance(numbers, (list, tuple)):
        return any(map(_is_open, numbers))
    return isinstance(numbers, (torch.SymInt, torch.SymFloat, Tensor))


def _in_a_new_thread(make: Callable[[], Tensor]) -> Tensor:
    """Make a tensor out of reach of the caller's inference mode, transforms, modes and memory pools.

    The tensor can be used anywhere. Any stream may read it, because the copy is complete on return.
    """
    made: Future[Tensor] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as error:
            made.set_exception(error)

    Thread(target=run).start()
    return made.result()


def is_traced() -> bool:
    """Whether a compiler or tracer is active, so that tensors may have no values."""
    if torch.compiler.is_compiling():
        return True
    modes = torch._C._TorchDispatchModeKey
    kinds = (modes.FAKE, modes.PROXY, modes.FUNCTIONAL)
    return any(torch._C._get_dispatch_mode(kind) is not None for kind in kinds)


def _kept(constant: Tensor) -> Tensor:
    """Keep a constant until the GPU has read it; forever, if a CUDA graph that is being captured reads it."""
    if constant.is_cuda:
        if torch.cuda.is_current_stream_capturing():
            _captured[constant.data_ptr()] = constant
        else:
            constant.record_stream(torch.cuda.current_stream(constant.device))
    return constant
