"""The steps of `python -m perf evidence`, the most telling first, and the surroundings of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from perf.measuring.workloads import WORKLOADS, Workload

Record = dict[str, Any]
"""A result of a step, for JSON: ``what`` it is about, and ``ok``, which is False if something is wrong."""
TELLING = (
    *("images-224", "features-64", "digits-28", "volume-160", "crops-7", "features-256-bf16-channels-last"),
    *("images-224-bf16", "features-64-channels-last", "pooled-7", "border-224"),
)
"""The most telling workloads first, because the end of the time cuts the last ones."""
_BACKWARDS = {
    "backward-3": WORKLOADS["images-224"],
    "backward-64": WORKLOADS["features-64"],
    "backward-border": WORKLOADS["border-224"],
    # Large images: with digits of 28 pixels, the host's time would hide the kernels'.
    "backward-1": replace(WORKLOADS["images-224"], shape=(64, 1, 224, 224)),
    "backward-16": replace(WORKLOADS["features-64"], shape=(32, 16, 112, 112)),
    "backward-256-bf16-channels-last": WORKLOADS["features-256-bf16-channels-last"],
}
BACKWARDS = {name: replace(like, name=name) for name, like in _BACKWARDS.items()}
"""Workloads that compare the gather with a scatter: few and many channels, and under ``border``."""


@dataclass(frozen=True)
class Step:
    """A part of the evidence, which runs in a process of its own."""

    name: str
    what: str
    seconds: float  # on an H200 with 16 cores; the time left is shared in proportion
    function: str  # ``module:function``, called with an item and the stage; it yields records
    items: Sequence[str]
    rehearsed: Sequence[str] = ()  # the items of a rehearsal


@dataclass(frozen=True)
class Stage:
    """The surroundings of a step."""

    out: Path  # the directory of the results
    end: float  # when the step will be stopped, on the clock of ``time.monotonic``
    rehearse: bool  # whether it is played on a CPU: kernels interpreted, workloads tiny
    facts: Record = field(default_factory=dict)
    """The facts that the first step found: those of `perf.setting`, ``copy_gb_per_s``, ``workers``."""

    @property
    def device(self) -> torch.device:
        """Where the operator runs."""
        return torch.device("cpu" if self.rehearse else "cuda")

    def sized(self, workload: Workload) -> Workload:
        """The workload, or in a rehearsal a tiny one of its kind under the same name."""
        if not self.rehearse:
            return workload
        batch, channels, *sides = workload.shape
        return replace(
            workload,
            shape=(min(batch, 2), min(channels, 16), *(min(side, 8) for side in sides)),
            size=workload.size and tuple(min(side, 8) for side in workload.size),
            crops=min(workload.crops, 3),
            scale=max(workload.scale, 0.3),
        )


_AT = "perf.evidence.measure"
_FIRST_CALLS = ("images-224", "digits-28", "volume-160", "features-64")
_FURTHER = [name for name, workload in WORKLOADS.items() if name not in TELLING and not workload.sweep]
# The first has time for the first imports on a machine, which may take long.
STEPS = (
    Step("machine", "hardware, versions, speed of a copy", 40, f"{_AT}:machine", ["facts"], ["facts"]),
    Step("check", "stn_triton check --quick", 140, f"{_AT}:check", ["check"], ["check"]),
    Step("tests", "the tests marked gpu", 50, f"{_AT}:gpu_tests", ["small", "large"], ["small"]),
    Step("compile", "compile what is timed", 40, f"{_AT}:compile_ahead", ["workloads"]),
    Step("speed", "against PyTorch", 70, f"{_AT}:speed", TELLING, ["digits-28"]),
    Step("backward", "gather against scatter", 50, f"{_AT}:speed", [*BACKWARDS], ["backward-1"]),
    Step("host", "host time of a call", 5, f"{_AT}:host", ["overhead"], ["overhead"]),
    Step("first-calls", "seconds of a first call", 40, f"{_AT}:first_call", _FIRST_CALLS, ["digits-28"]),
    Step("blocks", "the fastest block sizes", 45, f"{_AT}:block_sizes", TELLING),
    Step("further", "against PyTorch, other workloads", 45, f"{_AT}:speed", _FURTHER),
)
