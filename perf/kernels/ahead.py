"""Compile kernels before their launch, into Triton's cache, in a process that needs no GPU.

The calls that will launch them are made here on CPU tensors of the same shapes and strides, whose memory
nothing touches. Where Triton would launch a kernel, it only compiles it. So Triton's own launcher decides
what is compiled: types, constants, divisibilities and the key of the cache are those of the later launch.
(Addresses are multiples of 16 in both: PyTorch aligns CPU tensors to 64 bytes, CUDA tensors to 512.)
"""

from __future__ import annotations

import contextlib
import functools
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from perf.measuring import providers
from perf.measuring.passes import PASSES, Run
from perf.measuring.providers import Provider
from perf.measuring.workloads import Workload
from perf.tuning import launches
from stn_triton import policy, tuning
from stn_triton.buckets import Bucket
from stn_triton.tuning import Config

CPU = torch.device("cpu")
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


class Task(NamedTuple):
    """A kernel to compile: the launch of a bucket by a pass of a workload."""

    workload: Workload
    pass_name: str
    bucket: Bucket | None
    """None for a provider whose kernels have no buckets: then every launch of its call."""
    config: Config | None = None
    """The block sizes; None for the default."""
    provider: Provider | None = None
    """None for the operator."""

    def name(self) -> str:
        """The task in a line."""
        what = self.provider.name if self.provider else self.bucket.name()
        return f"{self.workload.name} {self.pass_name}: {what}"


def tasks_of(workloads: list[Workload], passes: tuple[str, ...]) -> list[Task]:
    """List the launches of workloads with the default block sizes, each kernel of a workload once."""
    found: dict[tuple[str, Bucket], Task] = {}
    for workload in workloads:
        for name in passes if workload.dtype.is_floating_point else ("forward",):
            for bucket in launches.reached(PASSES[name](providers.operator, launches.dry(workload))):
                found.setdefault((workload.name, bucket), Task(workload, name, bucket))
    return list(found.values())


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
    bucket = config = None

    def note(chosen: Bucket, launch: tuning.Launch) -> Config:
        nonlocal bucket, config
        bucket, config = chosen, choose(chosen, launch)
        return config

    def done(kernel: Any, seconds: float, is_cached: bool) -> None:
        nonlocal bucket, config
        if kernel is not None:
            name = bucket.name() if bucket else kernel.metadata.name
            found.setdefault(kernel.hash, Compiled(name, bucket, config, kernel, seconds, is_cached))
        bucket = config = None

    with compiling(target, lambda: is_wanted(bucket), done), tuning.choosing(note), launches.OntoKernels():
        run()
    return list(found.values())


def compile_task(
    task: Task, target: Target, describes: bool = True, device: str | None = None
) -> dict[str, Any]:
    """Compile the kernel of a task, with the block sizes that calls on a ``device`` of that name use.

    Returns:
        Processor ``seconds``, the number of ``kernels``, and whether all were ``cached``. If ``describes``
        and the target is NVIDIA's, also registers and so on of the last kernel, see `compiled.described`.
    """

    def run() -> None:
        sampler = task.provider.make() if task.provider else providers.operator
        PASSES[task.pass_name](sampler, launches.dry(task.workload, CPU))()

    def choose(bucket: Bucket, run: tuning.Launch) -> Config:
        own = task.config if bucket == task.bucket else None
        return own or table.get(bucket) or policy.default(bucket)

    table = {} if device is None else tuning.shipped(device)
    made = compile_call(run, target, choose, lambda bucket: task.bucket in (None, bucket))
    if not made:
        raise RuntimeError(f"{task.name()}: nothing was launched")
    result = {"seconds": sum(one.seconds for one in made), "kernels": len(made)}
    result["cached"] = all(one.is_cached for one in made)
    if describes and target[0] == "cuda":
        from perf.kernels import compiled

        with contextlib.suppress(Exception):  # not every Triton brings the tools that read machine code
            facts = compiled.described(made[-1].kernel, f"sm_{target[1]}")
            result |= {key: value for key, value in facts.items() if key != "code"}
    return result


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


@contextlib.contextmanager
def compiling(
    target: Target,
    is_wanted: Callable[[], object],
    done: Callable[[Any, float, bool], object] = lambda *_: None,
) -> Iterator[dict[str, Any]]:
    """Within, launches on CPU tensors only compile their kernels, those where ``is_wanted`` is true.

    Args:
        target: the GPU to compile for.
        is_wanted: called before each launch.
        done: called after each launch with the kernel (None if it was not wanted), the seconds of processor
            time that it took, and whether Triton's cache had it.

    Yields:
        A dictionary that has at the end the sum of ``seconds``, the number of ``kernels`` that were not yet
        known to this process, and whether all of them were ``cached``.
    """
    launch = JITFunction.run
    result: dict[str, Any] = {"seconds": 0.0, "kernels": 0, "cached": True}

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel, before, began = None, result["kernels"], _processor_seconds()
        if is_wanted():
            kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        seconds = _processor_seconds() - began
        result["seconds"] += seconds
        done(kernel, seconds, result["kernels"] == before or was_hit)

    def listen(*, cache_hit: bool, **_: Any) -> None:
        nonlocal was_hit
        was_hit = cache_hit
        result["kernels"] += 1
        result["cached"] &= cache_hit

    was_hit = True
    driver.set_active(_NoDriver(target))
    options = functools.partial(policy.compile_options, is_hip=target[0] == "hip")
    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(knobs.compilation, "listener", listen),
        mock.patch.object(policy, "compile_options", options),
    ):
        yield result


def _processor_seconds() -> float:
    """Seconds of user and system time of this process and of the children that it waited for."""
    return sum(os.times()[:4])
