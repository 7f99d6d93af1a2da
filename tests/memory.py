"""Tensors in poisoned storage, and a watch over every address that an interpreted kernel accesses.

`Storage` lays tensors out with gaps between their elements and guard bands around them, on a GPU too. Tensors
that the library allocates get the same bands. `Watch` sees each load, store and atomic of Triton's
interpreter. Each address must be that of an element of a tensor of the launch. Every element of an output
must be written once and never read.

Under `tools/sanitize.py` each tensor has an allocation that ends where the tensor ends. There `Storage` adds
no guard bands, because memcheck would take them for valid memory, and no poison, because initcheck would
take it for a value.
"""

import inspect
import os
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

IS_SANITIZED = bool(os.environ.get("STN_TRITON_SANITIZED"))  # set by tools/sanitize.py
if IS_SANITIZED:  # else the deterministic mode fills new memory
    torch.utils.deterministic.fill_uninitialized_memory = False
GUARD = 64  # elements before and after
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# NaNs with bits that no computation gives; for integers, unlikely numbers.
_POISON = {
    torch.float16: (0x7EDE, -0x0122),
    torch.bfloat16: (0x7FDE, -0x0022),
    torch.float32: (0x7FC0DEAD, -0x003F2153),
    torch.float64: (0x7FF8DEADDEADDEAD, -0x0007215221522153),
    torch.uint8: (0xA5, 0x5A),
    torch.int32: (0x7EADBEEF, -0x7EADBEEF),
    torch.int64: (0x7EADBEEF7EADBEEF, -0x7EADBEEF7EADBEEF),
}


class Layout(NamedTuple):
    """Layout of a tensor in its storage."""

    order: tuple[int, ...]
    """Dimensions of the tensor, from the outermost."""
    steps: tuple[int, ...]
    """Distance of neighbours along each dimension, in extents of the inner dimensions; 0 if expanded."""
    gaps: tuple[int, ...]
    """Elements left unused after each dimension."""
    offset: int = 0

    @classmethod
    def of(cls, shape, channels_last=False, step=1, gap=0, offset=0) -> "Layout":
        """Make a contiguous or channels_last layout with the same step and gap along all dimensions."""
        dims = len(shape)
        order = (0, *range(2, dims), 1) if channels_last and dims > 3 else tuple(range(dims))
        return cls(order, (step,) * dims, (gap,) * dims, offset)

    def unexpanded(self) -> "Layout":
        """Return the layout without expanded dimensions: each element has its own place."""
        return self._replace(steps=tuple(step or 1 for step in self.steps))

    def strides(self, shape) -> tuple[int, ...]:
        """Return the strides of a tensor of this shape, in elements."""
        strides, extent = [0] * len(shape), 1
        for dim in reversed(self.order):
            if self.steps[dim]:
                strides[dim] = extent * self.steps[dim]
                extent = strides[dim] * max(shape[dim], 1) + self.gaps[dim]
        return tuple(strides)


def offsets(tensor: Tensor) -> Tensor:
    """Return the distance of each element from the first, in elements."""
    total = torch.zeros(tensor.shape, dtype=torch.int64)
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        total += (torch.arange(size) * stride).view(-1, *[1] * (tensor.ndim - 1 - dim))
    return total


def _places(view: Tensor) -> Tensor:
    """Return the index of each element in the storage."""
    return (offsets(view) + view.storage_offset()).flatten().to(view.device)


class _Kept(NamedTuple):
    buffer: Tensor
    view: Tensor
    values: Tensor | None
    """None for a tensor that a kernel has to write."""


class Storage(TorchFunctionMode):
    """Lays given tensors out in poisoned storage; as a context, also tensors that are allocated empty.

    ``pattern``, 0 or 1, chooses the poison. Results of a kernel must not depend on it.
    """

    def __init__(self, pattern: int = 0):
        super().__init__()
        self.pattern = pattern
        self.kept: list[_Kept] = []

    def _view(self, like: Tensor, strides: tuple[int, ...], offset: int = 0) -> tuple[Tensor, Tensor]:
        span = 1 + sum((n - 1) * s for n, s in zip(like.shape, strides, strict=True))
        poison, bits = _POISON[like.dtype][self.pattern], _BITS[like.itemsize]
        start, size = (0, span) if IS_SANITIZED else (GUARD + offset, GUARD + offset + span + GUARD)
        buffer = torch.empty(size, dtype=bits, device=like.device)
        if not IS_SANITIZED:
            buffer.fill_(poison)
        return buffer, buffer.view(like.dtype).as_strided(like.shape, strides, start)

    def place(self, values: Tensor | None, layout: Layout) -> Tensor | None:
        """Copy ``values`` into a layout. An expanded dimension repeats its first element."""
        if values is None or values.numel() == 0:
            return values
        for dim, step in enumerate(layout.steps):
            if step == 0:
                values = values.narrow(dim, 0, 1).expand_as(values)
        buffer, view = self._view(values, layout.strides(values.shape), layout.offset)
        buffer.view(values.dtype)[_places(view)] = values.flatten()
        self.kept.append(_Kept(buffer, view, values.clone(memory_format=torch.contiguous_format)))
        return view

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if (
            IS_SANITIZED
            or func not in (torch.empty, torch.empty_like, Tensor.new_empty)
            or result.numel() == 0
        ):
            return result
        if result.is_meta:
            return result
        buffer, view = self._view(result, result.stride())
        self.kept.append(_Kept(buffer, view, None))
        return view

    def check(self) -> None:
        """Check that all elements of outputs are written, and that gaps, bands and inputs are unchanged."""
        for buffer, view, values in self.kept:
            poison = _POISON[view.dtype][self.pattern]
            places = _places(view)
            what = f"{tuple(view.shape)}, strides {view.stride()}, {view.dtype}"
            if not IS_SANITIZED:
                rest = torch.ones(len(buffer), dtype=torch.bool, device=buffer.device)
                rest[places] = False
                assert (buffer[rest] == poison).all(), f"written outside of a tensor {what}"
            found = buffer[places]
            if values is not None:
                expected = values.view(_BITS[values.itemsize]).flatten()
                assert torch.equal(found, expected), f"written to what is only read, {what}"
            elif view.dtype != torch.uint8:
                assert (found != poison).all(), f"elements not written, {what}"


# Arguments that each kernel writes; all others are read.
_WRITTEN = {
    "forward_kernel": ("output_ptr",),
    "backward_kernel": ("grad_input_ptr", "partial_ptr"),
    "scatter_kernel": ("partial_ptr",),
    "fill_kernel": ("partial_ptr",),
    "settle_kernel": ("grad_input_ptr",),
}
_ADDED_TO = {"scatter_kernel": ("grad_input_ptr", "whole_ptr", "limits_ptr")}
_READ_TOO = {"scatter_kernel": ("limits_ptr",), "settle_kernel": ("grad_input_ptr",)}


class _Elements:
    """Addresses of the elements of tensors, by element size.

    Tensors of equal element size share a set: reading theta through the pointer of the input goes unnoticed.
    """

    def __init__(self, tensors: dict[str, Tensor]):
        self.addresses, self.counts = {}, {}
        for itemsize in {t.itemsize for t in tensors.values()}:
            found = [
                offsets(t).flatten().numpy() * itemsize + t.data_ptr()
                for t in tensors.values()
                if t.itemsize == itemsize and t.numel()
            ]
            if found:
                self.addresses[itemsize] = np.unique(np.concatenate(found))
                self.counts[itemsize] = np.zeros(len(self.addresses[itemsize]), np.int64)

    def touch(self, pointers, mask) -> int:
        """Count the accesses to each element; return the number of those that hit no element."""
        itemsize = pointers.get_element_ty().primitive_bitwidth // 8
        wanted = pointers.data[np.broadcast_to(mask.data.astype(bool), pointers.data.shape)].astype(np.int64)
        if not wanted.size:
            return 0
        known = self.addresses.get(itemsize)
        if known is None:
            return wanted.size
        at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        is_known = known[at] == wanted
        np.add.at(self.counts[itemsize], at[is_known], 1)
        return int((~is_known).sum())


class Watch:
    """Checks every memory access and every conversion to an integer of interpreted kernels after `start`."""

    def __init__(self):
        self.launches: list[str] = []
        self.accesses = 0

    @staticmethod
    def missing() -> str | None:
        """Return why kernels cannot be watched here, or None if they can."""
        if torch.cuda.is_available():
            return "compiled kernels cannot be watched from Python: tools/sanitize.py does it"
        from triton.runtime import interpreter

        builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
        first = {
            "create_masked_load": ["self", "ptrs", "mask"],
            "create_masked_store": ["self", "ptrs", "value", "mask"],
            "create_atomic_rmw": ["self", "rmwOp", "ptr", "val", "mask"],
            "create_fp_to_si": ["self", "src", "dst_type"],
        }
        for name, parameters in first.items():
            method = getattr(builder, name, None)
            if method is None or list(inspect.signature(method).parameters)[: len(parameters)] != parameters:
                return f"this Triton's interpreter has no {name}({', '.join(parameters)}, ...)"
        if not hasattr(executor, "_init_args_hst"):
            return "this Triton's interpreter has no GridExecutor._init_args_hst"
        return None

    def start(self, monkeypatch) -> "Watch":
        from triton.runtime import interpreter

        builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
        load, store = builder.create_masked_load, builder.create_masked_store
        add, arguments, call = builder.create_atomic_rmw, executor._init_args_hst, executor.__call__
        convert = builder.create_fp_to_si
        watch = self

        def watched_load(self, ptrs, mask, *args, **kwargs):
            watch._see("read", watch.read, ptrs, mask)
            return load(self, ptrs, mask, *args, **kwargs)

        def watched_store(self, ptrs, value, mask, *args, **kwargs):
            watch._see("written", watch.written, ptrs, mask)
            return store(self, ptrs, value, mask, *args, **kwargs)

        def watched_add(self, op, ptr, value, mask, *args, **kwargs):
            watch._see("added to", watch.added, ptr, mask)
            return add(self, op, ptr, value, mask, *args, **kwargs)

        def watched_conversion(self, src, dtype):
            bits = dtype.scalar.primitive_bitwidth
            fits = np.abs(src.data) < 2 ** (bits - 1)  # False for NaN
            assert fits.all(), f"{watch.launches[-1]}: {src.data[~fits][0]} does not fit into {bits} bits"
            return convert(self, src, dtype)

        def watched_arguments(self, args, kwargs):
            found = arguments(self, args, kwargs)
            name = self.fn.__name__
            if name not in _WRITTEN:  # a test's own
                watch.written = watch.added = watch.read = None
                return found
            named = dict(zip(self.arg_names, found[0], strict=False)) | found[1]
            tensors = {k: t for k, t in named.items() if isinstance(t, Tensor)}
            written, added = _WRITTEN[name], _ADDED_TO.get(name, ())
            watch.launches.append(name)
            watch.written = _Elements({k: t for k, t in tensors.items() if k in written})
            watch.added = _Elements({k: t for k, t in tensors.items() if k in added})
            outputs = {*written, *added} - {*_READ_TOO.get(name, ())}
            watch.read = _Elements({k: t for k, t in tensors.items() if k not in outputs})
            return found

        def watched_call(self, *args, **kwargs):
            result = call(self, *args, **kwargs)
            counts = watch.written.counts.values() if watch.written else ()
            missed, again = (
                sum(int(f(c).sum()) for c in counts) for f in (lambda c: c == 0, lambda c: c > 1)
            )
            assert not missed + again, f"{watch.launches[-1]}: {missed} elements not written, {again} twice"
            return result

        monkeypatch.setattr(builder, "create_masked_load", watched_load)
        monkeypatch.setattr(builder, "create_masked_store", watched_store)
        monkeypatch.setattr(builder, "create_atomic_rmw", watched_add)
        monkeypatch.setattr(builder, "create_fp_to_si", watched_conversion)
        monkeypatch.setattr(executor, "_init_args_hst", watched_arguments)
        monkeypatch.setattr(executor, "__call__", watched_call)
        return self

    def _see(self, verb: str, elements: _Elements | None, pointers, mask) -> None:
        if elements is None:
            return
        missed = elements.touch(pointers, mask)
        self.accesses += int(np.count_nonzero(mask.data))
        assert not missed, f"{self.launches[-1]}: {missed} addresses {verb} that are of no such tensor"
