"""Compile kernels before their launch, in a process that needs no GPU.

The calls that will launch them are made here on CPU tensors of the same shapes and strides, whose memory
nothing touches. Where Triton would launch a kernel, it only compiles it. So Triton's own launcher decides
what is compiled: types, constants and divisibilities are those of the later launch. (Addresses are multiples
of 16 in both: PyTorch aligns CPU tensors to 64 bytes, CUDA tensors to 512.)
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from perf.measuring.passes import Run
from perf.tuning import launches
from stn_triton import policy, tuning
from stn_triton.buckets import Bucket
from stn_triton.tuning import Config

Target = tuple[str, Any, int]
"""Backend, architecture and lanes of a warp: ("cuda", 90, 32)."""


class Compiled(NamedTuple):
    """A kernel that a call would launch."""

    name: str
    """Name of its bucket, or of the kernel if it has none."""
    bucket: Bucket | None
    config: Config | None
    """The block sizes; None without a bucket."""
    kernel: Any
    """Triton's ``CompiledKernel``."""
    seconds: float
    """Processor time that compiling took."""
    is_cached: bool
    """Whether Triton's cache had it."""


def compile_call(
    run: Run,
    target: Target,
    choose: tuning.Chooser = lambda bucket, run: policy.default(bucket),
    is_wanted: Callable[[Bucket | None], object] = lambda bucket: True,
) -> list[Compiled]:
    """Compile the kernels that a call would launch.

    Args:
        run: makes the call, on CPU tensors.
        target: the GPU to compile for.
        choose: returns the block sizes of a bucket.
        is_wanted: whether to compile a launch of a bucket, or of a kernel without one; called once for each.
    """
    found: dict[str, Compiled] = {}
    hits: list[bool] = []
    bucket = config = None
    launch = JITFunction.run

    def note(chosen: Bucket, run: tuning.Launch) -> Config:
        nonlocal bucket, config
        bucket, config = chosen, choose(chosen, run)
        return config

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        nonlocal bucket, config
        if is_wanted(bucket):
            hits.clear()
            began = _processor_seconds()
            kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
            seconds = _processor_seconds() - began
            if kernel is not None:  # a hook may have prevented it
                name = bucket.name() if bucket else kernel.metadata.name
                one = Compiled(name, bucket, config, kernel, seconds, is_cached=False not in hits)
                found.setdefault(kernel.hash, one)
        bucket = config = None

    driver.set_active(_NoDriver(target))
    options = functools.partial(policy.compile_options, is_hip=target[0] == "hip")
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(knobs.compilation, "listener", lambda *, cache_hit, **_: hits.append(cache_hit)),
        mock.patch.object(policy, "compile_options", options),
        tuning.choosing(note),
        launches.OntoKernels(),
    ):
        run()
    return list(found.values())


class _NoDriver:
    """Stands for Triton's driver before a launch: one device of a given target."""

    def __init__(self, target: Target) -> None:
        self._target = GPUTarget(*target)

    def get_current_device(self) -> int:
        """Return another number for each target: Triton keeps a device's kernels by its number."""
        return zlib.crc32(repr(self._target).encode())

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self._target


def _processor_seconds() -> float:
    """Seconds of user and system time of this process and of the children that it waited for."""
    return sum(os.times()[:4])
