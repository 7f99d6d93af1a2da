"""Compile kernels before their launch, in a process that needs no GPU.

The calls that will launch them are made here on CPU tensors of the same shapes and strides, whose memory
nothing touches. Where Triton would launch a kernel, it only compiles it. So Triton's own launcher decides
what is compiled: types, constants and divisibilities are those of the later launch. (Addresses are multiples
of 16 in both: PyTorch aligns CPU tensors to 64 bytes, CUDA tensors to 512.)
"""

import functools
import os
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from perf.measuring.passes import Run
from perf.tuning.launches import OntoKernels
from stn_triton import policy, tuning
from stn_triton.buckets import Bucket
from stn_triton.tuning import Config


class Compiled(NamedTuple):
    """A kernel that a call would launch."""

    name: str  # of its bucket, or of the kernel if it has none
    bucket: Bucket | None
    config: Config | None  # the block sizes; None without a bucket
    kernel: Any  # Triton's CompiledKernel
    seconds: float  # processor time of the compilation, almost none if Triton's cache has the kernel


def compile_call(
    run: Run,
    target: tuple[str, Any, int],
    choose: tuning.Chooser = lambda bucket, run: policy.default(bucket),
) -> list[Compiled]:
    """Compile the kernels that a call would launch.

    Args:
        run: makes the call, on CPU tensors.
        target: backend, architecture and lanes of a warp, such as ("cuda", 90, 32).
        choose: returns the block sizes of a bucket.
    """
    found: dict[str, Compiled] = {}
    bucket = config = None
    launch = JITFunction.run

    def note(chosen: Bucket, run: tuning.Launch) -> Config:
        nonlocal bucket, config
        bucket, config = chosen, choose(chosen, run)
        return config

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        nonlocal bucket, config
        began = sum(os.times()[:4])  # those of Triton's assembler too, which is another process
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        seconds = sum(os.times()[:4]) - began
        if kernel is not None:  # a hook may have prevented it
            name = bucket.name() if bucket else kernel.metadata.name
            found.setdefault(kernel.hash, Compiled(name, bucket, config, kernel, seconds))
        bucket = config = None

    # Triton keeps a device's kernels by its number, so each target is another device.
    device = SimpleNamespace(
        get_current_device=lambda: hash(target),
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget(*target),
    )
    driver.set_active(device)
    options = functools.partial(policy.compile_options, is_hip=target[0] == "hip")
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(policy, "compile_options", options),
        tuning.choosing(note),
        OntoKernels(),
    ):
        run()
    return list(found.values())
