"""Which buckets of launches there are to tune, and a call for each that launches it.

Nothing here computes a bucket: calls are run dry, on meta tensors, and the launcher says which buckets it
reached.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
_made: dict[tuple[str, torch.device], Data] = {}


class Case(NamedTuple):
    """A call that launches a bucket, on tensors of its own."""

    source: str
    """Where it comes from: a workload and a pass."""
    make: Callable[[torch.device], Run]


Plan = dict[Bucket, Case]
"""What to tune, in this order."""


class OntoKernels(TorchDispatchMode):
    """Send the operators to the kernels on every device: to the interpreter on a CPU, dry on meta tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._implementations = ops.operators(ops._implementations(ops._launch, ops._launch))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        return self._implementations.get(func, func)(*args, **(kwargs or {}))


def reached(run: Run) -> list[Bucket]:
    """The buckets that a call launches, in order; it is run once, with the defaults."""
    found: dict[Bucket, None] = {}

    def choose(bucket: Bucket, launch: tuning.Launch) -> tuning.Config:
        found[bucket] = None
        return policy.default(bucket)

    with tuning.choosing(choose), OntoKernels():
        run()
    return list(found)


def of_workloads(chosen: Sequence[Workload], passes: Sequence[str] = tuple(PASSES)) -> tuple[Plan, list[str]]:
    """The buckets that workloads reach, each with the first call that does; and what calls cannot be made."""
    plan: Plan = {}
    problems = []
    for workload in chosen:
        data = dry(workload)
        for name in passes:
            make_pass = PASSES[name]
            source = f"{workload.name} {name}"
            try:
                buckets = reached(make_pass(operator, data))
            except Exception as error:  # an image without gradients, for example
                problems.append(f"{source}: {error}")
                continue
            make = functools.partial(_run_of_workload, workload, name)
            for bucket in buckets:
                plan.setdefault(bucket, Case(source, make))
    return plan, problems


def _run_of_workload(workload: Workload, pass_name: str, device: torch.device) -> Run:
    return PASSES[pass_name](operator, _data(workload, device))


def _data(workload: Workload, device: torch.device) -> Data:
    """Kept until another's is made, for its next bucket: they come workload by workload."""
    if (workload.name, device) not in _made:
        _made.clear()
        _made[workload.name, device] = workloads.make(workload, device)
    return _made[workload.name, device]


def dry(workload: Workload, device: torch.device = META) -> Data:
    """Tensors of a workload's shapes and strides, of which only that is known: nothing is written to them."""
    with FakeTensorMode(allow_non_fake_inputs=True):  # the shapes, without the work
        fake = workloads.make(workload, torch.device("cpu"))
    fields = {field.name: getattr(fake, field.name) for field in dataclasses.fields(fake)}
    tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    blank = {
        name: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device)
        for name, t in tensors.items()
    }
    return dataclasses.replace(fake, **blank)
