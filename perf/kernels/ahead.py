"""Kernels compiled ahead of their launch, into Triton's cache, in a process that needs no GPU.

The calls that will launch them are made here on tensors of the same shapes and strides, whose memory nothing
touches; where Triton would launch a kernel it only compiles it. So what is compiled is what Triton's own
launcher asks for later: the same types, constants and divisibilities, under the same key of the cache. (The
addresses are multiples of 16 in both: PyTorch aligns CPU tensors to 64 bytes, CUDA tensors to 512.)
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

import stn_triton.policy
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


class Launch(NamedTuple):
    """A kernel that a call launches."""

    number: int
    """How many the call launches before."""
    name: str
    """Of its bucket; of the kernel if it has none."""
    bucket: Bucket | None
    key: str
    """What Triton tells compiled kernels apart by."""


class Task(NamedTuple):
    """A kernel to compile: the launch of a bucket by a pass of a workload."""

    workload: Workload
    pass_name: str
    bucket: Bucket | None
    """None for a provider whose kernels have no buckets: then all that its call launches."""
    config: Config | None = None
    """The block sizes; None for the default."""
    provider: Provider | None = None
    """None for the operator."""

    def name(self) -> str:
        """The task in a line."""
        what = self.provider.name if self.provider else self.bucket.name()
        return f"{self.workload.name} {self.pass_name}: {what}"


def tasks_of(workloads: list[Workload], passes: tuple[str, ...]) -> list[Task]:
    """What the passes of workloads launch with the default block sizes, each kernel of a workload once."""
    found: list[Task] = []
    for workload in workloads:
        buckets: set[Bucket] = set()
        for pass_name in passes:
            if pass_name != "forward" and not workload.dtype.is_floating_point:
                continue
            run = PASSES[pass_name](providers.operator, launches.dry(workload))
            for bucket in launches.reached(run):
                if bucket not in buckets:
                    buckets.add(bucket)
                    found.append(Task(workload, pass_name, bucket))
    return found


def launches_of(run: Run, target: Target) -> list[Launch]:
    """What a call launches with the default block sizes; nothing is compiled."""
    found: list[Launch] = []
    order = _Order()

    def note(*, key: str, fn: Any, **_: Any) -> bool:
        bucket = order.bucket
        name = bucket.name() if bucket else fn.name.rpartition(".")[2]
        found.append(Launch(order.number, name, bucket, f"{fn.name} {key}"))
        return True  # so that Triton does not compile

    with mock.patch.object(knobs.runtime, "jit_cache_hook", note):
        _run(run, target, order, lambda: True)
    return found


def compile_launch(
    run: Run, launch: Launch, target: Target, config: Config | None = None
) -> tuple[dict[str, Any], Any]:
    """Compile one of a call's launches, with the default block sizes or a ``config``.

    Returns:
        What `compiling` yields, and the kernel.
    """
    order = _Order(lambda bucket, order: config if order.number == launch.number else None)
    result, (kernel,) = _run(run, target, order, lambda: order.number == launch.number)
    return result, kernel


def compile_task(
    task: Task, target: Target, describes: bool = True, device: str | None = None
) -> dict[str, Any]:
    """Compile the kernel of a task, with the block sizes that calls on a ``device`` of that name use.

    Returns:
        What `compiling` yields; and of the last kernel, if it is NVIDIA's and asked for, registers and so
        on, as `perf.kernels.compiled.described` has them.
    """

    def run() -> None:
        sampler = task.provider.make() if task.provider else providers.operator
        PASSES[task.pass_name](sampler, launches.dry(task.workload, CPU))()

    def config_of(bucket: Bucket, order: _Order) -> Config:
        return task.config if bucket == task.bucket and task.config else usual(bucket, None)

    usual = usual_configs(device)
    order = _Order(config_of)
    result, kernels = _run(run, target, order, lambda: task.bucket is None or order.bucket == task.bucket)
    if not kernels:
        raise RuntimeError(f"{task.name()}: nothing was launched")
    if describes and target[0] == "cuda":
        from perf.kernels import compiled

        with contextlib.suppress(Exception):  # not every Triton brings the tools that read machine code
            facts = compiled.described(kernels[-1], f"sm_{target[1]}")
            result |= {key: value for key, value in facts.items() if key != "code"}
    return result


class _Order:
    """Which launch of a call comes next."""

    def __init__(self, config_of: Callable[[Bucket, _Order], Config | None] | None = None) -> None:
        self.number = 0
        self.bucket: Bucket | None = None
        self._config_of = config_of

    def choose(self, bucket: Bucket, run: object = None) -> Config:
        self.bucket = bucket
        return (self._config_of and self._config_of(bucket, self)) or policy.default(bucket)

    def passed(self) -> None:
        self.number, self.bucket = self.number + 1, None


def _run(
    run: Run, target: Target, order: _Order, is_wanted: Callable[[], bool]
) -> tuple[dict[str, Any], list[Any]]:
    kernels: list[Any] = []
    with (
        compiling(target, is_wanted, kernels, order.passed) as result,
        tuning.choosing(order.choose),
        launches.OntoKernels(),
    ):
        run()
    return result, kernels


def usual_configs(device: str | None) -> tuning.Chooser:
    """What chooses block sizes as calls do: those of the GPU's table, else the default."""
    table = {} if device is None else tuning.shipped(device)
    return lambda bucket, run: table.get(bucket) or policy.default(bucket)


class _NoDriver:
    """What Triton asks of a driver before it launches: of one device, whose target is given."""

    def __init__(self, target: Target) -> None:
        self._target = GPUTarget(*target)

    def get_current_device(self) -> int:
        """A number for each target: Triton keeps a device's kernels by its number."""
        return zlib.crc32(repr(self._target).encode())

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self._target


@contextlib.contextmanager
def compiling(
    target: Target,
    is_wanted: Callable[[], bool],
    kernels: list[Any] | None = None,
    passed: Callable[[], object] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """Compile what would be launched, on CPU tensors, where ``is_wanted``; launch nothing.

    ``passed`` is called after each launch. Yields a dictionary that has at the end the ``seconds`` of
    processor time that compiling took, the number of ``kernels``, and whether all were ``cached``. The
    kernels themselves come into the list.
    """
    launch = JITFunction.run
    kernels = [] if kernels is None else kernels
    hits: list[bool] = []
    result: dict[str, Any] = {}
    seconds = 0.0

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        nonlocal seconds
        if is_wanted():
            began = _processor_seconds()
            kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
            kernels.extend([kernel] * (kernel is not None))
            seconds += _processor_seconds() - began
        passed()

    def listen(*, cache_hit: bool, **_: Any) -> None:
        hits.append(cache_hit)

    driver.set_active(_NoDriver(target))
    options = functools.partial(stn_triton.policy.compile_options, is_hip=target[0] == "hip")
    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(knobs.compilation, "listener", listen),
        mock.patch.object(stn_triton.policy, "compile_options", options),
    ):
        yield result
    began = _processor_seconds()
    if target[0] == "cuda":
        _build_launchers(kernels)
    seconds += _processor_seconds() - began
    result |= {"seconds": seconds, "kernels": len(hits), "cached": all(hits)}


def _build_launchers(kernels: list[Any]) -> None:
    """Triton 3.6 builds a C function for each signature when a kernel is first launched; later ones have one.

    It takes a C compiler a quarter of a second and needs the driver's library, which is not everywhere.
    """
    with contextlib.suppress(Exception):
        from triton.backends.nvidia.driver import CudaLauncher

        for kernel in {id(kernel): kernel for kernel in kernels}.values():
            CudaLauncher(kernel.src, kernel.metadata)


def _processor_seconds() -> float:
    """Of this process and of those that it waited for; what others do on the machine does not count."""
    return sum(os.times()[:4])  # user and system, its own and its children's
