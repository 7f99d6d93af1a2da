"""How fast: the operator against PyTorch, gather against scatter, the host's time, and first calls.

Rows are those of `bench`, and go into the same kind of file, ``speed.csv``.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from tqdm import tqdm

from perf import first_call as first_calls
from perf import overhead
from perf.evidence.agenda import BACKWARDS
from perf.evidence.stage import Record, Stage
from perf.files import FAILED, OPERATOR
from perf.measuring import maps, providers, results, stopwatch, suite
from perf.measuring.providers import Provider
from perf.measuring.rival_scatter import SCATTER
from perf.measuring.workloads import WORKLOADS
from stn_triton.check import engine

MAPS = ("identity", maps.RANDOM)
BACKWARD_MAPS = ("identity", "rotate-30", "zoom-2")
REHEARSAL = stopwatch.Effort(cpu_seconds=0, cpu_rounds=1, gpu_rounds=2, gpu_ms_per_round=1, most_copies=1)
FIRST_CALL_SECONDS = 40
"""A first call that takes longer is not waited for."""


def speed(item: str, stage: Stage) -> Iterator[Record]:
    """The operator and PyTorch's ways, under the maps that a CPU run has too."""
    yield from _rows(item, stage, MAPS, providers.choose(("eager-corners", "eager-broadcast")))


def backward(item: str, stage: Stage) -> Iterator[Record]:
    """The operator, a fused scatter and the eager pair, forward and with both gradients."""
    yield from _rows(item, stage, BACKWARD_MAPS, [*providers.choose(()), SCATTER])


def _rows(item: str, stage: Stage, map_names: Sequence[str], which: Sequence[Provider]) -> Iterator[Record]:
    """Measure, add the rows to the CSV as they come, and yield each."""
    workload = BACKWARDS.get(item) or WORKLOADS[item]
    map_names = [name for name in map_names if not workload.why_not(name)]
    slack = 8.0 if stage.rehearse else 1.0  # the largest error of a tiny batch is a matter of luck
    plan = suite.Plan(
        stage.device,
        [stage.sized(workload)],
        map_names[-1:] if stage.rehearse else map_names,
        ("forward", "forward+backward"),
        [replace(provider, slack=slack * provider.slack) for provider in which],
        quick=stage.rehearse,
        copy_gb_per_s=stage.facts.get("copy_gb_per_s", float("nan")),
        own_effort=REHEARSAL if stage.rehearse else stopwatch.FULL,
        replays_below_ms=2.0,  # a training step keeps the host busy for 0.4 ms
    )
    facts = {"quick": stage.rehearse, **{k: v for k, v in stage.facts.items() if k != "workers"}}
    kernels = engine.INTERPRETER if stage.rehearse else engine.KERNELS
    runs = engine.running(engine.Engine(stage.device, kernels, torch.get_num_threads()))
    with runs, tqdm(disable=True) as progress:
        for rows in suite.run(plan, progress):
            results.append(results.frame(rows, facts), stage.out / "speed.csv")
            for row in rows:
                yield {
                    "ok": row["status"] != FAILED or row["provider"] != OPERATOR,
                    "what": " ".join(row[key] for key in ("workload", "map", "pass", "provider")),
                    "ms": row.get("median_ms"),
                    "problem": row.get("reason", ""),
                }


def host(item: str, stage: Stage) -> Iterator[Record]:
    """The host's time of a call. With 50 rounds, not the 150 of `overhead`, it takes seconds."""
    found = overhead.measure(stage.device, rounds=3 if stage.rehearse else 50)
    yield {"ok": True, "what": "microseconds of a call", "microseconds": found}


def first_call(item: str, stage: Stage) -> Iterator[Record]:
    """The seconds of a first training step in a process with an empty cache."""
    limit = max(1.0, min(FIRST_CALL_SECONDS, stage.end - time.monotonic() - 1))
    try:
        times = first_calls.in_a_new_process(item, *["--rehearse"] * stage.rehearse, timeout=limit)
    except subprocess.TimeoutExpired:
        times = {"problem": f"no result after {limit:.0f} s"}
    yield {"ok": True, "what": f"first call of {item}", **times}
