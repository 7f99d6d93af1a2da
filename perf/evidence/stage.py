"""What a step of `python -m perf evidence` may use: the device, its time, the results before it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from perf.evidence import subjects
from perf.measuring import stopwatch
from perf.measuring.workloads import Workload

Record = dict[str, Any]
"""What a step found, as a JSON object; ``ok`` False says that something is wrong."""
GPU_BYTES_PER_PROCESS = 2**31
"""What a process takes of a GPU's memory for its context and for small tensors, generously."""
REHEARSAL = stopwatch.Effort(cpu_seconds=0, cpu_rounds=2, gpu_rounds=2, gpu_ms_per_round=1, most_copies=1)


@dataclass(frozen=True)
class Stage:
    """The surroundings of a step."""

    out: Path
    """The directory of the results."""
    end: float
    """When the step will be stopped, on the clock of ``time.monotonic``."""
    rehearse: bool
    """Whether all is played on a CPU: kernels interpreted, workloads tiny."""
    facts: Record = field(default_factory=dict)
    """What the first step found: the facts of the machine, ``copy_gb_per_s``, ``target``, ``workers``."""

    def seconds_left(self) -> float:
        """Until the step will be stopped."""
        return self.end - time.monotonic()

    @property
    def device(self) -> torch.device:
        """Where the operator runs."""
        return torch.device("cpu" if self.rehearse else "cuda")

    @property
    def effort(self) -> stopwatch.Effort:
        """How long to measure a pass of a workload under a map."""
        return REHEARSAL if self.rehearse else stopwatch.FULL

    @property
    def slack(self) -> float:
        """How many times the tolerance is allowed, which tiny batches make a matter of luck."""
        return 8.0 if self.rehearse else 1.0

    def sized(self, workload: Workload) -> Workload:
        """The workload, or a tiny one of its kind in a rehearsal."""
        return subjects.tiny(workload) if self.rehearse else workload

    @property
    def row_facts(self) -> Record:
        """What goes into each row of a CSV beside what was measured."""
        apart = ("target", "workers", "memory_gib", "multiprocessors")
        own = {key: value for key, value in self.facts.items() if key not in apart}
        return {"quick": self.rehearse, **own}

    @contextlib.contextmanager
    def kernels(self) -> Iterator[None]:
        """Calls of the operator reach the kernels: those of the GPU, or the interpreter in a rehearsal."""
        from stn_triton.check import engine

        name = engine.INTERPRETER if self.rehearse else engine.KERNELS
        with engine.running(engine.Engine(self.device, name, torch.get_num_threads())):
            yield


def read_facts(out: Path) -> Record:
    """The facts that the first step left in a directory of results; empty if it left none."""
    try:
        return json.loads((out / "evidence.json").read_text())["machine"]
    except (OSError, ValueError, KeyError):
        return {}


def workers(free_gpu_bytes: int | None = None) -> int:
    """How many processes may work side by side: one for each core, if the GPU has the memory."""
    cores = len(os.sched_getaffinity(0))
    if free_gpu_bytes is None:
        return cores
    return max(1, min(cores, free_gpu_bytes // GPU_BYTES_PER_PROCESS))
