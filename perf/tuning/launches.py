"""The buckets of launches that there are to tune, and for each a call that launches it.

Nothing here computes a bucket: calls are run dry, on meta tensors, and the launcher reports the buckets that
it reached.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from perf.measuring import workloads
from perf.measuring.passes import PASSES, Run
from perf.measuring.providers import operator
from perf.measuring.workloads import Data, Workload
from stn_triton import ops, policy, tuning
from stn_triton.buckets import Bucket

META = torch.device("meta")
Plan = dict[Bucket, Callable[[torch.device], Run]]
"""Buckets, and for each a function that makes a call for a device, on tensors of its own."""


class OntoKernels(TorchDispatchMode):
    """Send the operators to the kernels on every device: to the interpreter on a CPU, dry on meta tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._implementations = ops.operators(ops._implementations(ops._launch, ops._launch))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        return self._implementations.get(func, func)(*args, **(kwargs or {}))


def launched(run: Run, configs: Mapping[Bucket, tuning.Config]) -> tuple[Sequence[Tensor], dict]:
    """Make a call with configurations for some buckets, and the defaults for others.

    Returns:
        The results, and the buckets that the call launches, in order, each with a function that launches it.
    """
    found: dict[Bucket, tuning.Launch] = {}

    def choose(bucket: Bucket, launch: tuning.Launch) -> tuning.Config:
        found.setdefault(bucket, launch)
        return configs.get(bucket) or policy.default(bucket)

    with tuning.choosing(choose):
        return run(), found


def reached(run: Run) -> list[Bucket]:
    """Make a call once, on any device; returns the buckets that it launches, in order."""
    with OntoKernels():
        return list(launched(run, {})[1])


def passes_of(workload: Workload) -> list[str]:
    """The passes of a workload; images of whole numbers have no gradients."""
    return list(PASSES) if workload.dtype.is_floating_point else ["forward"]


def of_workloads(chosen: Sequence[Workload]) -> Plan:
    """Find the buckets that workloads reach, each with the first call that reaches it."""
    plan: Plan = {}
    for workload in chosen:
        data = dry(workload)
        for name in passes_of(workload):

            def make(device: torch.device, workload: Workload = workload, name: str = name) -> Run:
                return PASSES[name](operator, workloads.make(workload, device))

            for bucket in reached(PASSES[name](operator, data)):
                plan.setdefault(bucket, make)
    return plan


def dry(workload: Workload, device: torch.device = META) -> Data:
    """Make tensors of a workload's shapes and strides; their memory is not written."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = workloads.make(workload, torch.device("cpu"))
    blank = {
        name: torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
        for name, value in vars(fake).items()
        if isinstance(value, Tensor)
    }
    return dataclasses.replace(fake, **blank)
