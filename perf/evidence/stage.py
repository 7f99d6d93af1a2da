"""The surroundings of a step of `python -m perf evidence`: device, time, and the facts of the machine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from perf.measuring.workloads import Workload

Record = dict[str, Any]
"""A result of a step, for JSON: ``what`` it is about, and ``ok``, which is False if something is wrong."""


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
