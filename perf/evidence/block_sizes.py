"""The fastest block sizes of what the telling workloads launch: as many buckets as the time suffices for.

For each workload the candidates are compiled side by side, then timed one after the other, as `tune` does it.
What was found is kept after each bucket: ``tuning.csv``, and a table in the form that the library ships.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from perf.evidence import compiling
from perf.evidence.agenda import STEPS
from perf.evidence.stage import Record, Stage
from perf.kernels.ahead import Task
from perf.measuring.workloads import WORKLOADS, Workload
from perf.tuning import launches
from perf.tuning.fastest import Effort, Gpu, Result, named, search, time_on_gpu
from perf.tuning.state import Keeper
from stn_triton.buckets import Bucket
from stn_triton.tuning import Config, Launch

EFFORT = Effort(first_ms=5, rounds=3, round_ms=10, finalists=3, configs=12, most_seconds=10)
REHEARSAL = Effort(first_ms=0, rounds=1, round_ms=0, finalists=1, configs=2)


_TOGETHER = 4
"""Workloads whose candidates are compiled at once: to start processes takes as long as to compile one's."""
_compiled: set[str] = set()
"""Of which workloads this process has compiled the candidates."""


def run(item: str, stage: Stage) -> Iterator[Record]:
    """The buckets of one workload's forward and backward."""
    effort = REHEARSAL if stage.rehearse else EFFORT
    path = stage.out / "block-sizes.json"
    keeper = Keeper(stage.out / "tuning.csv", path, stage.facts, effort, print)
    keeper.open(fresh=False)
    if not stage.rehearse and item not in _compiled:  # a rehearsal interprets
        together = following(item)
        _compiled.update(together)
        yield from _compile(stage, together, keeper, effort)
    gpu = Gpu(stage.device, stage.facts, _time_on_cpu if stage.rehearse else time_on_gpu)
    with stage.kernels():
        for bucket, case in _todo(stage.sized(WORKLOADS[item]), keeper).items():
            found = search(bucket, case.make(stage.device), gpu, effort)
            keeper.add(bucket, found)
            yield _record(bucket, found)


def following(item: str) -> list[str]:
    """A workload and those that come after it, as many as are compiled together."""
    (step,) = (step for step in STEPS if step.name == "blocks")
    names = step.items(False)
    start = names.index(item)
    return names[start : start + _TOGETHER]


def _todo(workload: Workload, keeper: Keeper) -> dict[Bucket, launches.Case]:
    plan, _ = launches.of_workloads([workload], compiling.MAIN_PASSES)
    return {bucket: case for bucket, case in plan.items() if not keeper.is_done(bucket)}


def _compile(stage: Stage, names: Sequence[str], keeper: Keeper, effort: Effort) -> Iterator[Record]:
    candidates = [
        Task(WORKLOADS[name], case.source.split()[-1], bucket, config)
        for name in names
        for bucket, case in _todo(WORKLOADS[name], keeper).items()
        for config in effort.configs_of(bucket)
    ]
    candidates.sort(key=compiling.seconds_of, reverse=True)
    for record in compiling.compiled(candidates, stage, describes=False):
        yield record if not record["ok"] else {"ok": True, "compiled": record["kernel"]}


def _record(bucket: Bucket, found: list[Result]) -> Record:
    default, best = found[0], next((result for result in found if result.is_best), found[0])
    wrong = [result.status for result in found if result.status.startswith("wrong")]
    return {
        "ok": not wrong,
        "bucket": bucket.name(),
        "tried": len(found),
        "default": named(default.config),
        "default_ms": default.quantiles and default.quantiles[1],
        "best": named(best.config),
        "best_ms": best.quantiles and best.quantiles[1],
        "problem": "; ".join(wrong),
    }


def _time_on_cpu(launch: Launch, config: Config, ms: int) -> list[float]:
    start = time.perf_counter()
    launch(config)
    return [(time.perf_counter() - start) * 1e3] * 3
