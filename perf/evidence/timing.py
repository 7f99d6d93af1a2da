"""How fast: gather against scatter, the operator against PyTorch, the host's time and the first call.

Rows are those of `bench`, and go into the same kind of file, `speed.csv`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tqdm import tqdm

from perf import first_call, overhead
from perf.evidence import subjects, tests
from perf.evidence.stage import Record, Stage
from perf.files import FAILED, OPERATOR
from perf.measuring import maps, providers, results, suite
from perf.measuring.providers import COMPILE, Provider
from perf.measuring.rival_scatter import SCATTER
from perf.measuring.workloads import WORKLOADS, Workload

MAPS = ("identity", maps.RANDOM)
PASSES = ("forward", "forward+backward")
RIVALS = ("eager-corners", "eager-broadcast")
REPLAYS_BELOW_MS = 2.0
"""A training step keeps the host busy for some 0.4 ms: shorter ones are replayed too."""
FIRST_CALL_SECONDS = 40
"""A first call that takes longer is not waited for."""
LEAST_SECONDS = 10
OVERHEAD_ROUNDS = 50
"""Of the host's time: of 150, as `overhead` has by itself, first calls had no time left."""


def backward(item: str, stage: Stage) -> Iterator[Record]:
    """The backward of the operator, of a fused scatter, and of the eager pair."""
    workload = next(w for w in subjects.backwards() if w.name == item)
    which = [*providers.choose(()), SCATTER]
    yield from _rows(stage, workload, subjects.BACKWARD_MAPS, PASSES, which)


def speed(item: str, stage: Stage) -> Iterator[Record]:
    """The operator and PyTorch's ways, under the maps that a CPU run has too."""
    yield from _rows(stage, WORKLOADS[item], MAPS, PASSES, providers.choose(RIVALS))


def against_compile(item: str, stage: Stage) -> Iterator[Record]:
    """torch.compile of the eager pair, under one map; the rows of the others are known."""
    passes = PASSES[:1] if stage.rehearse else PASSES
    yield from _rows(stage, WORKLOADS[item], MAPS[-1:], passes, providers.choose((COMPILE,)), only=COMPILE)


def further(item: str, stage: Stage) -> Iterator[Record]:
    """Another workload, or the tests that need the GPU for themselves."""
    if item == "gpu tests":
        yield from tests.alone(tests.GPU_TESTS, stage)
    else:
        one = MAPS[:1] if WORKLOADS[item].why_not(MAPS[-1]) else MAPS[-1:]
        yield from _rows(stage, WORKLOADS[item], one, PASSES, providers.choose(RIVALS))


def _rows(
    stage: Stage,
    workload: Workload,
    map_names: Sequence[str],
    passes: Sequence[str],
    which: Sequence[Provider],
    only: str = "",
) -> Iterator[Record]:
    """Measure, write the rows to the CSV as they come, and yield how each went; ``only`` of one provider."""
    map_names = [name for name in map_names if not workload.why_not(name)]
    if stage.rehearse:
        map_names = map_names[-1:]
    copy_gb_per_s = stage.facts.get("copy_gb_per_s", float("nan"))
    plan = suite.Plan(
        stage.device,
        [stage.sized(workload)],
        map_names,
        passes,
        [replace(provider, slack=stage.slack * provider.slack) for provider in which],
        quick=stage.rehearse,
        copy_gb_per_s=copy_gb_per_s,
        own_effort=stage.effort,
        replays_below_ms=REPLAYS_BELOW_MS,
    )
    with stage.kernels(), tqdm(disable=True) as progress:
        for rows in suite.run(plan, progress):
            rows = [row for row in rows if row["provider"] == only or not only]
            results.append(results.frame(rows, stage.row_facts), stage.out / "speed.csv")
            for row in rows:
                yield {
                    "ok": row["status"] != FAILED or row["provider"] != OPERATOR,
                    "what": " ".join(row[key] for key in ("workload", "map", "pass", "provider")),
                    "ms": row.get("median_ms"),
                    "status": row["status"],
                    "problem": row.get("reason", ""),
                }


def host(item: str, stage: Stage) -> Iterator[Record]:
    """The host's time of a call; or the seconds until a process with an empty cache has its first results."""
    if item == "overhead":
        rounds, calls = (3, 10) if stage.rehearse else (OVERHEAD_ROUNDS, 20)
        found = overhead.measure(stage.device, rounds, calls)
        yield {"ok": True, "what": "microseconds of a call", "microseconds": found}
    else:
        yield _first_call(item, stage)


def _first_call(name: str, stage: Stage) -> Record:
    """As a user has it, whose first call compiles."""
    what = f"first call of {name}"
    limit = min(FIRST_CALL_SECONDS, stage.seconds_left() - 1)
    if limit < LEAST_SECONDS:
        return {"ok": True, "what": what, "problem": "no time was left"}
    try:
        times = first_call.in_a_new_process(name, *["--rehearse"] * stage.rehearse, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"ok": True, "what": what, "problem": f"no result after {limit:.0f} s", "over": limit}
    except subprocess.CalledProcessError as error:
        return {"ok": False, "what": what, "problem": f"exit code {error.returncode}, see the log"}
    return {"ok": True, "what": what, **times}
