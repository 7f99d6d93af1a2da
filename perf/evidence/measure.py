"""The work of each step: run the project's commands side by side, and time the operator.

Rows of times are those of `bench`, and go into the same kind of file, ``speed.csv``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

import torch
from tqdm import tqdm

from perf import first_call as first_calls
from perf import overhead, setting
from perf.evidence.stage import BACKWARDS, TELLING, Record, Stage
from perf.files import FAILED, OPERATOR
from perf.measuring import maps, providers, results, roofline, stopwatch, suite
from perf.measuring.passes import PASSES
from perf.measuring.rival_scatter import SCATTER
from perf.measuring.workloads import WORKLOADS
from perf.tuning import launches
from stn_triton.check import engine

Done = subprocess.CompletedProcess
_GPU_BYTES_PER_PROCESS = 2**31  # for its context and small tensors, generously
_LARGE = "2_31"  # in the names of tests that need most of a GPU's memory, so they run one after the other
_REHEARSAL = stopwatch.Effort(cpu_seconds=0, cpu_rounds=1, gpu_rounds=2, gpu_ms_per_round=1, most_copies=1)
_FIRST_CALL_SECONDS = 40  # a first call that takes longer is not waited for


def machine(item: str, stage: Stage) -> Iterator[Record]:
    """Find the facts of the machine, then the copy bandwidth, which may fail."""
    facts = setting.facts(stage.device) | {"workers": len(os.sched_getaffinity(0))}
    if stage.rehearse:
        facts["device"] = f"{facts['device']} (rehearsal: kernels interpreted)"
        facts["device_type"] = "interpreter"
    else:
        free, _ = torch.cuda.mem_get_info(stage.device)
        facts["workers"] = max(1, min(facts["workers"], free // _GPU_BYTES_PER_PROCESS))
    yield {"ok": True, "what": "facts", "facts": facts}
    bandwidth = roofline.copy_gb_per_s(stage.device)
    yield {"ok": True, "what": "copy bandwidth", "facts": {"copy_gb_per_s": bandwidth}}


def check(item: str, stage: Stage) -> Iterator[Record]:
    """Run the rows of ``python -m stn_triton check --quick`` side by side: each compiles many kernels.

    Rows that an earlier process of this step has compared are left out.
    """
    from stn_triton.check.rows import ROWS

    found = stage.out / "evidence.json"
    before = json.loads(found.read_text())["steps"]["check"]["records"] if found.exists() else []
    names = [row.name for row in reversed(ROWS)]  # the last have the most kernels
    total = 1 if stage.rehearse else len(names)
    options = ["-m", "stn_triton", "check", "--quick", "--json", "--device", str(stage.device), "--only"]
    commands = {name: [*options, name] for name in names[-total:]}
    for record in before:
        commands.pop(record["what"], None)
    for name, done in side_by_side(commands, stage.facts["workers"]):
        rows = json.loads(done.stdout)["rows"] if done.stdout and done.returncode in (0, 1) else []
        problems = [f"{row['of']}: {row['text']}" for row in rows if row["status"] == "FAIL"]
        yield _record(name, done, problems, rows=rows, total=total)


def gpu_tests(item: str, stage: Stage) -> Iterator[Record]:
    """Run the ``small`` tests of tests/test_gpu.py in parts side by side, or the ``large`` ones in one part.

    They need pytest, none of its plugins, and none of `tests/conftest.py`. A rehearsal only collects them.
    """
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "COLUMNS": "300"}
    pytest = ["-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", "--noconftest", "-W", "ignore"]
    pytest += ["-p", "no:cacheprovider", "--tb", "line"]
    ((_, listing),) = side_by_side({"": [*pytest, "--collect-only", "tests/test_gpu.py"]}, 1, **environment)
    is_large = item == "large"
    names = [name for name in listing.stdout.splitlines() if "::" in name and (_LARGE in name) == is_large]
    if stage.rehearse or not names:
        yield _record(f"{len(names)} tests collected", listing, passed=0)
        return
    count = 1 if is_large else min(2 * stage.facts["workers"], len(names))
    parts = {f"{item} tests, part {i + 1} of {count}": [*pytest, *names[i::count]] for i in range(count)}
    for part, done in side_by_side(parts, stage.facts["workers"], **environment):
        lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        passed = re.search(r"(\d+) passed", done.stdout)
        yield _record(part, done, lines, passed=int(passed[1]) if passed else 0)


def compile_ahead(item: str, stage: Stage) -> Iterator[Record]:
    """Make a first call of each workload side by side, so that its kernels are compiled when it is timed."""
    commands = {name: ["-m", "perf.first_call", name] for name in (*BACKWARDS, *TELLING)}
    for name, done in side_by_side(commands, stage.facts["workers"]):
        yield _record(name, done)


def block_sizes(item: str, stage: Stage) -> Iterator[Record]:
    """Run `python -m perf tune` for a workload's training step; it goes on where a run that was cut ended."""
    step = PASSES["forward+backward"](providers.operator, launches.dry(WORKLOADS[item]))
    buckets = [bucket.name() for bucket in launches.reached(step)]
    command = ["-m", "perf", "tune", "--workloads", item, "--only", *buckets, "--out", str(stage.out)]
    command += ["--table", str(stage.out / "block-sizes.json")]
    ((_, done),) = side_by_side({item: command}, 1)
    yield _record(item, done, text=f"block sizes of {item}:\n{done.stdout}")


def speed(item: str, stage: Stage) -> Iterator[Record]:
    """Time the operator beside PyTorch's ways; for ``BACKWARDS`` beside a fused scatter and the eager pair.

    Rows are added to the CSV as they come.

    Raises:
        RuntimeError: the GPU was lost, so nothing more can run in this process.
    """
    if item in BACKWARDS:
        workload, map_names = BACKWARDS[item], ["identity", "rotate-30", "zoom-2"]
        which = [*providers.choose(()), SCATTER]
    else:
        workload, map_names = WORKLOADS[item], ["identity", maps.RANDOM]
        which = providers.choose(("eager-corners", "eager-broadcast"))
        if item not in TELLING:  # one map, the random one if the workload can have it
            map_names = [name for name in map_names if not workload.why_not(name)][-1:]
    slack = 8.0 if stage.rehearse else 1.0  # the largest error of a tiny batch is a matter of luck
    plan = suite.Plan(
        stage.device,
        [stage.sized(workload)],
        map_names[-1:] if stage.rehearse else map_names,
        ("forward", "forward+backward"),
        [replace(provider, slack=slack * provider.slack) for provider in which],
        quick=stage.rehearse,
        copy_gb_per_s=stage.facts.get("copy_gb_per_s", float("nan")),
        own_effort=_REHEARSAL if stage.rehearse else stopwatch.FULL,
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
            if rows[-1]["reason"].startswith(suite.LOST):  # by whichever provider
                raise RuntimeError(rows[-1]["reason"])


def host(item: str, stage: Stage) -> Iterator[Record]:
    """The host's time of a call. With 50 rounds, not the 150 of `overhead`, it takes seconds."""
    found = overhead.measure(stage.device, rounds=3 if stage.rehearse else 50)
    ours, pair = found["affine_grid_sample"], found["eager pair"]
    each = ", ".join(f"{name} {us:.0f} ({pair[name]:.0f})" for name, us in ours.items())
    text = f"host time of a call in microseconds, operator (eager pair): {each}"
    yield {"ok": True, "what": "host time of a call", "microseconds": found, "text": text}


def first_call(item: str, stage: Stage) -> Iterator[Record]:
    """The seconds of a first training step in a process with an empty cache."""
    limit = max(1.0, min(_FIRST_CALL_SECONDS, stage.end - time.monotonic() - 1))
    try:
        times = first_calls.in_a_new_process(item, *["--rehearse"] * stage.rehearse, timeout=limit)
        seconds = times["first_forward_s"] + times.get("first_backward_s", 0)
        text = f"first call of {item}: {seconds:.1f} s with its backward"
    except subprocess.TimeoutExpired:
        times, text = {}, f"first call of {item}: no result after {limit:.0f} s"
    yield {"ok": True, "what": f"first call of {item}", "text": text, **times}


def side_by_side(
    commands: Mapping[str, Sequence[str]], workers: int, **variables: str
) -> Iterator[tuple[str, Done]]:
    """Run Python with these arguments, ``workers`` processes at a time; yield each name as its process ends.

    ``variables`` are added to the environment. Standard error goes to the log.
    """

    def run(arguments: Sequence[str]) -> Done:
        command = [sys.executable, *arguments]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables})

    with ThreadPoolExecutor(workers) as threads:
        futures = {threads.submit(run, arguments): name for name, arguments in commands.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _record(what: str, done: Done, problems: Sequence[str] = (), **content: object) -> Record:
    """The record of a command, whose exit code says whether it succeeded."""
    problem = ""
    if done.returncode:
        print(done.stdout)  # to the log
        problem = "; ".join(problems) or f"exit code {done.returncode}, see evidence.log"
    return {"what": what, "ok": done.returncode == 0, "problem": problem, **content}
