"""What the steps will take: `--plan` prints it, and `--count` counts here what it rests on.

The price of compiling is counted: processor seconds of each kernel, with an empty cache and no GPU, kept in
``perf/results/compile-seconds.json``. The other prices follow what an H200 beside 16 cores took.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import triton
from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK
from perf.evidence import behaviour, compiling, profiling, subjects, timing
from perf.evidence.agenda import Step
from perf.evidence.conductor import reserve
from perf.evidence.stage import Record, Stage, workers
from perf.measuring.listing import COMPILE_S, REFERENCE_S
from perf.tuning import launches
from stn_triton import environment

COUNTED = Path(__file__).parents[1] / "results" / "compile-seconds.json"
ARCH = "sm_90"
_START_S = 6
"""Of a process: imports, and the GPU's context."""
_ROW_S = 0.24
"""Of a row of the CSV, with its share of the references."""
_BUCKET_S = 7
"""Of a kind of launch whose block sizes are searched: compiling side by side, checks, timings."""
_PROFILED_S = 4
"""Of a workload under the profiler, which runs each kernel for each few metrics."""
# Kernels that the check and the calls launch (counted) and the tests (estimated), and the seconds of one.
_CHECKED_KERNELS, _TESTED_KERNELS, _SMALL_KERNEL_S = 780, 90, 0.9


def text(steps: Sequence[Step], minutes: float, cores: int) -> str:
    """A line per step: what it needs on so many cores, what it may take, and what it does."""
    needs = _prices(cores)
    left = 60 * minutes - reserve(60 * minutes)
    lines = [f"{'step':14}{'needs':>8}{'may take':>10}           what it does"]
    for number, step in enumerate(steps):
        share = left * step.seconds / sum(other.seconds for other in steps[number:])
        if number == 0:
            share = max(share, left / 3)
        is_cut = needs[step.name] > share
        left -= min(needs[step.name], share)
        word = "cut" if is_cut else ""
        lines.append(f"{step.name:14}{needs[step.name]:6.0f} s{share:8.0f} s  {word:9}{step.what}")
    total = sum(needs[step.name] for step in steps)
    lines.append(f"{'together':14}{total:6.0f} s{60 * minutes:8.0f} s  on {cores} cores")
    return "\n".join(
        (
            *lines,
            "May take: the limit of a step. Time that a step does not need goes to those after it, and what",
            "is left at the end to those that were cut. Seconds to compile were counted, all others are",
            f"about what an H200 took. Counted: {_source()}.",
        )
    )


def count(arch: str = ARCH) -> int:
    """Compile here, with an empty cache, all that the evidence compiles, and keep the processor seconds."""
    tasks = compiling.tasks()
    target = ("cuda", int(arch.removeprefix("sm_")), 32)
    kernels: Record = {}
    problems = []
    with tempfile.TemporaryDirectory(prefix="stn_triton_") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        stage = Stage(Path(folder), time.monotonic(), False, {"target": target, "workers": workers()})
        records = compiling.compiled(tasks, stage)
        for record in tqdm(records, "kernels", len(tasks), disable=None):
            if not record["ok"]:
                problems.append(f"{record['kernel']}: {record['problem']}")
                continue
            wanted = ("seconds", "registers", "spills", "occupancy", "instructions")
            kernels[record["kernel"]] = {
                key: round(record[key], 3) for key in wanted if isinstance(record.get(key), (int, float))
            }
    content = _read()
    facts = {"cpu": environment.cpu_model(), "date": time.strftime("%Y-%m-%d")}
    content[f"triton {triton.__version__}, {arch}"] = facts | {"kernels": dict(sorted(kernels.items()))}
    COUNTED.write_text(json.dumps(dict(sorted(content.items())), indent=1) + "\n")
    total = sum(kernel["seconds"] for kernel in kernels.values())
    print(f"{len(kernels)} kernels, {total:.0f} s of processor time; written: {COUNTED}")
    for problem in problems:
        print(problem)
    return EXIT_FAILED if problems else EXIT_OK


def _prices(cores: int) -> dict[str, float]:
    """Seconds of each step by name."""
    tasks = compiling.tasks()
    seconds = {task.name(): _seconds(task) for task in tasks}
    buckets = sum(
        len(launches.of_workloads([workload], compiling.MAIN_PASSES)[0]) for workload in subjects.TELLING
    )
    rows = len(timing.MAPS) * len(timing.PASSES) * (2 + len(timing.RIVALS))
    telling, backwards, further = len(subjects.TELLING), len(subjects.backwards()), len(subjects.FURTHER)
    first = sum(
        min(timing.FIRST_CALL_SECONDS, 4 + sum(s for n, s in seconds.items() if n.startswith(f"{w.name} ")))
        for w in subjects.FIRST_CALLS
    )
    checked = _CHECKED_KERNELS * _SMALL_KERNEL_S / cores
    return {
        "machine": _START_S,
        "compile": 2 * _START_S + _side_by_side(list(seconds.values()), cores) + checked,
        "compare": _START_S + 0.05 * len(subjects.compared()),
        "behaviour": _START_S + 1.2 * len(behaviour.CALLS),
        "check": 2 * _START_S + 25,
        "tests": 2 * _START_S + _TESTED_KERNELS * _SMALL_KERNEL_S / cores + 15,
        "backward": _START_S + backwards * 3 * 6 * _ROW_S,
        "speed": _START_S + telling * rows * _ROW_S,
        "host": _START_S + 4 + first,
        "blocks": _START_S + _BUCKET_S * buckets,
        "profile": 2 * _START_S + profiling.MOST * _PROFILED_S,
        "torch-compile": _START_S + telling * (REFERENCE_S + 2 * COMPILE_S),
        "further": _START_S + further * (rows / 2 * _ROW_S + 4) + 60,
    }


def _side_by_side(seconds: Sequence[float], cores: int) -> float:
    """With the longest begun first."""
    return max(max(seconds, default=0), sum(seconds) / cores)


def _seconds(task: compiling.Task) -> float:
    """As counted, by this Triton or another one; an estimate if it is new."""
    counts = _read()
    own = {name: c for name, c in counts.items() if name.startswith(f"triton {triton.__version__},")}
    for content in (own or counts).values():
        if task.name() in content["kernels"]:
            return content["kernels"][task.name()]["seconds"]
    return compiling.seconds_of(task)


def _source() -> str:
    known = [f"{name} on {content['cpu']}" for name, content in _read().items()]
    return "; ".join(known) or "not yet counted"


def _read() -> Record:
    return json.loads(COUNTED.read_text()) if COUNTED.exists() else {}
