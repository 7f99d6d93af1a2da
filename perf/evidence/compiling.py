"""Compile, side by side, what later steps launch; what machine code shows comes with it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from triton import knobs

from perf.evidence import crew, subjects
from perf.evidence.behaviour import ATOMIC, BATCH_AND_SIDE, CALLS
from perf.evidence.stage import Record, Stage
from perf.kernels import ahead
from perf.kernels.ahead import Task
from perf.measuring.rival_scatter import SCATTER
from perf.measuring.suite import one_line
from perf.tuning import fastest
from stn_triton import launch, ops, policy, tuning
from stn_triton.check import cases, command, judge, oracle
from stn_triton.check.engine import KERNELS, Engine, deterministic
from stn_triton.check.rows import ROWS

MAIN_PASSES = ("forward", "backward")
NAMES = [row.name for row in ROWS]


def run(item: str, stage: Stage) -> Iterator[Record]:
    """All kernels with their default block sizes, a record each."""
    found = tasks()
    if stage.rehearse:
        found = [found[-1], next(task for task in reversed(found) if task.provider)]
    yield from compiled(found, stage)
    count = stage.facts["workers"]
    shares = [(i, count) for i in range(1 if stage.rehearse else count)]
    names = (ATOMIC[-1], NAMES[0]) if stage.rehearse else (*CALLS, *NAMES)
    for (i, _), result in crew.each(
        compile_share, shares, count, names, tuple(stage.facts["target"]), stage.facts["device"]
    ):
        yield _record(f"calls and rows of the check, part {i + 1} of {count}", result)


def tasks() -> list[Task]:
    """What later steps launch but for tests, tries of block sizes and first calls; the longest first."""
    found = [
        *ahead.tasks_of(subjects.TELLING, MAIN_PASSES),
        *ahead.tasks_of(subjects.backwards(), MAIN_PASSES),
        *(Task(workload, "backward", None, provider=SCATTER) for workload in subjects.backwards()),
        *ahead.tasks_of(subjects.compared(), subjects.PASSES),
    ]
    # Workloads of other names may have the same shapes, and so the same kernels.
    once = {repr((replace(task.workload, name="", who=""), task[2:])): task for task in reversed(found)}
    return sorted(once.values(), key=seconds_of, reverse=True)


def compiled(found: Sequence[Task], stage: Stage, describes: bool = True) -> Iterator[Record]:
    """Compile tasks; yields how each went as it comes."""
    target = tuple(stage.facts["target"])
    device = stage.facts.get("device")
    for task, result in crew.each(
        ahead.compile_task, found, stage.facts["workers"], target, describes, device
    ):
        yield _record(task.name(), result)


def _record(name: str, result: Any) -> Record:
    is_wrong = isinstance(result, Exception)
    return {"ok": not is_wrong, "kernel": name, **({"problem": one_line(result)} if is_wrong else result)}


def compile_share(share: tuple[int, int], names: Sequence[str], target: ahead.Target, device: str) -> Record:
    """Compile a part, (which, of how many), of what calls of `behaviour` and rows of the check launch.

    All are made, which takes seconds where nothing is launched; which kernels are this part's, their keys
    say. Results mean nothing here, so what the check would compare them with is not computed: that took
    most of the time.
    """
    index, count = share

    def is_others(*, key: str, fn: Any, **_: Any) -> bool:
        return zlib.crc32(f"{fn.name} {key}".encode()) % count != index

    engine = Engine(torch.device("cpu"), KERNELS)
    with (
        ahead.compiling(target, lambda: True) as result,
        mock.patch.object(knobs.runtime, "jit_cache_hook", is_others),
        tuning.choosing(ahead.usual_configs(device)),
        mock.patch.multiple(ops, reference=launch, reference_tangent=launch),
        mock.patch.object(judge, "truth", _untrue),
        mock.patch.object(cases, "_kinks", _unkinked),
    ):
        for name in names:
            if name in CALLS:
                CALLS[name](engine.device, BATCH_AND_SIDE)()
        with deterministic():  # whose sums have other kernels
            for name in {*ATOMIC} & {*names}:
                CALLS[name](engine.device, BATCH_AND_SIDE)()
        command.run([row for row in command.chosen(None) if row.name in names], engine, quick=True)
    return result


def _untrue(case: cases.Case, *_: object) -> oracle.Truth:
    """Of the shapes of the truth."""
    fill = None if case.fill is None else case.fill.double()
    return oracle.Truth(case.grad.double(), case.input.double(), case.theta.double(), fill)


def _unkinked(matrices: torch.Tensor, size_in: Sequence[int], size: Sequence[int], options: object) -> Any:
    """No output pixel at a kink, and a largest term."""
    return torch.zeros(len(matrices), *size, dtype=torch.bool), 1.0


def seconds_of(task: Task) -> float:
    """About how long a task takes, in processor seconds; of a provider without buckets, all its kernels."""
    if task.bucket is None:
        return 5.0
    return fastest.seconds_of(task.bucket, task.config or policy.default(task.bucket))
