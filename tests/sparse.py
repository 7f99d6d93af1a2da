"""Tensors larger than memory, mapped from empty files: only pages that are touched take memory."""

import contextlib
from unittest import mock

import torch
from triton.runtime import interpreter

from stn_triton import launch


class Sparse:
    """Makes tensors of zeros from files in a folder; only written pages take memory and disk."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0

    def strided(self, shape, strides, dtype):
        size = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        self.count += 1
        path = self.folder / f"{self.count}.bin"
        flat = torch.from_file(str(path), shared=True, size=size, dtype=dtype)
        path.unlink()  # the mapping stays
        return flat.as_strided(shape, strides)

    def empty(self, shape, dtype, memory_format=torch.contiguous_format):
        strides = torch.empty(shape, device="meta").contiguous(memory_format=memory_format).stride()
        return self.strided(shape, strides, dtype)

    def like(self, tensor, strides):
        """Copy a tensor to other strides."""
        return self.strided(tensor.shape, strides, tensor.dtype).copy_(tensor)

    @contextlib.contextmanager
    def allocating(self, make):
        """Let the launcher allocate results by ``make(shape, dtype, memory_format)``."""

        def empty(shape, dtype=None, device=None, memory_format=torch.contiguous_format):
            return make(tuple(shape), dtype, memory_format)

        def empty_like(tensor, dtype=None, memory_format=torch.contiguous_format):
            return make(tuple(tensor.shape), dtype or tensor.dtype, memory_format)

        class Torch:
            """Stand in for ``torch`` in the launcher, with other functions to allocate."""

            def __getattr__(self, name):
                return {"empty": empty, "empty_like": empty_like}.get(name) or getattr(torch, name)

        with mock.patch.object(launch, "torch", Torch()):
            yield


class SomePrograms:
    """A kernel that runs only the programs chosen by ``choose(count)``."""

    def __init__(self, kernel, choose):
        self.kernel, self.choose = kernel, choose
        self.arg_names = kernel.arg_names

    def __getitem__(self, grid):
        def launched(**arguments):
            builder = interpreter.interpreter_builder
            (programs,) = grid  # one axis, because the others end at 65,535
            for program in self.choose(programs):
                assert 0 <= program < programs < 2**31

                def set_grid_idx(x, y, z, program=program):
                    builder.grid_idx = (program, 0, 0)

                with mock.patch.object(builder, "set_grid_idx", set_grid_idx):
                    self.kernel[(1,)](**arguments)

        return launched
