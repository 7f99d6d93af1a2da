"""Launch plans: the preparation that calls of one kind share is done once.

On every launch Triton binds some forty arguments by name, derives from their values what compiled code may
assume, and looks up the compiled kernel. This takes 25 to 30 us of host time (measured with sixty arguments),
more than a whole call of PyTorch's two operators. The result depends only on shapes, strides, dtypes,
options, the device, and the alignment of addresses. So a plan is kept for each set of such facts. In a plan,
a `Launch` keeps the arguments that are no pointers and, for each alignment, the compiled kernel. Each launch
reads only addresses and the current stream.

Triton's hooks around launches are always called. Its hooks around a kernel's `run` are called only on the
first launch of a plan and an alignment. Settings that cause another compilation take effect in new plans.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from stn_triton import tuning

MOST = 1024
"""Largest number of plans, of a few kilobytes each; plans of splines hold their points too. When it is
reached, all are dropped."""
_plans: dict[Hashable, Any] = {}
_IS_HIP = torch.version.hip is not None


def facts_of(tensors: Iterable[Tensor | None]) -> list[Hashable]:
    """The facts of tensors that a plan depends on. Addresses are left out: each launch reads them."""
    return [None if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in tensors]


def planned(facts: tuple[Hashable, ...], device: torch.device, make: Callable[[], Any]) -> Any:
    """Look up the plan for these facts, or make and keep a new one.

    A plan with provisional block sizes is not kept. These are plans made in the capture of a CUDA graph,
    which cannot search, and in a context of `tuning.choosing`, which tries block sizes.
    """
    if tuning.is_choosing():
        return make()
    key = (*tuning.state(), *facts)
    plan = _plans.get(key)
    if plan is None:
        plan = make()
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return plan
        if len(_plans) >= MOST:
            _plans.clear()
        _plans[key] = plan
    return plan


def forget() -> None:
    """Drop all plans, for tests that replace kernels."""
    _plans.clear()


class Launch:
    """A kernel with all that a launch needs except its tensors."""

    __slots__ = ("_grid", "_kernel", "_names", "_numbers", "_options", "_partial", "_runners")

    def __init__(
        self,
        kernel: Any,
        programs: int,
        numbers: Mapping[str, object],
        options: Mapping[str, object],
        partial: tuple[tuple[int, ...], torch.dtype] | None = None,
    ) -> None:
        """Take a Triton function, whose first parameters are pointers, and the values of the others.

        ``partial`` is the shape and the dtype of the partial sums that programs store, if any.
        """
        self._kernel = kernel
        self._grid = (programs, 1, 1)
        self._names = [name for name in kernel.arg_names if name.endswith("_ptr")]
        self._numbers = [numbers[name] for name in kernel.arg_names[len(self._names) :]]
        self._options = options
        self._partial = partial
        self._runners: dict[tuple[bool, ...], Callable[..., None]] = {}

    def __call__(self, tensors: dict[str, Tensor | None]) -> Tensor | None:
        """Launch the kernel on tensors, by names of parameters; returns its partial sums, if it has any."""
        partial = None
        if self._partial is not None:
            shape, dtype = self._partial
            partial = torch.empty(shape, dtype=dtype, device=tensors["theta_ptr"].device)
            tensors["partial_ptr"] = partial
        given = [tensors[name] for name in self._names]
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in given]
        kind = tuple([address is None or address % 16 == 0 for address in addresses])
        if _IS_HIP:  # compiled code for AMD may assume small tensors
            kind += tuple(t is None or t.untyped_storage().nbytes() < 2**31 for t in given)
        run = self._runners.get(kind)
        if run is not None:
            run(*addresses, *self._numbers)
        elif not tensors["theta_ptr"].is_meta:  # a dry run launches nothing
            self._first(kind, given)
        return partial

    def _first(self, kind: tuple[bool, ...], given: list[Tensor | None]) -> None:
        """Use Triton's own launcher, which checks the tensors and compiles the kernel if necessary."""
        arguments = dict(zip(self._kernel.arg_names, (*given, *self._numbers), strict=True))
        compiled = self._kernel[self._grid[:1]](**arguments, **self._options)
        if hasattr(compiled, "result"):  # the caller compiles in other threads
            compiled = compiled.result()
        if compiled is not None:  # an interpreted kernel returns nothing
            self._runners[kind] = compiled[self._grid]
