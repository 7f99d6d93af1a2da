"""The machine, the check, the GPU tests, and block sizes: steps that run the project's other commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch

from perf import setting
from perf.evidence.agenda import TELLING
from perf.evidence.stage import Record, Stage
from perf.measuring import roofline

Done = subprocess.CompletedProcess
GPU_BYTES_PER_PROCESS = 2**31
"""GPU memory that a process takes for its context and small tensors, generously."""
_LARGE = "2_31"
"""In the names of tests that need most of a GPU's memory, so they run one after the other."""


def machine(item: str, stage: Stage) -> Iterator[Record]:
    """Find the facts of the machine, then the copy bandwidth, which may fail."""
    facts = setting.facts(stage.device) | {"workers": len(os.sched_getaffinity(0))}
    if stage.rehearse:
        facts["device"] = f"{facts['device']} (rehearsal: kernels interpreted)"
        facts["device_type"] = "interpreter"
    else:
        free, _ = torch.cuda.mem_get_info(stage.device)
        facts["workers"] = max(1, min(facts["workers"], free // GPU_BYTES_PER_PROCESS))
    yield {"ok": True, "what": "facts", "facts": facts}
    bandwidth = roofline.copy_gb_per_s(stage.device)
    yield {"ok": True, "what": "copy bandwidth", "facts": {"copy_gb_per_s": bandwidth}}


def check(item: str, stage: Stage) -> Iterator[Record]:
    """Run the rows of ``python -m stn_triton check --quick`` side by side: each compiles many kernels."""
    from stn_triton.check.rows import ROWS

    names = [row.name for row in reversed(ROWS)]  # the last have the most kernels
    options = ["-m", "stn_triton", "check", "--quick", "--json", "--device", str(stage.device), "--only"]
    commands = {name: [*options, name] for name in names[-1 if stage.rehearse else 0 :]}
    for name, done in side_by_side(commands, stage.facts["workers"]):
        rows = json.loads(done.stdout)["rows"] if done.stdout and done.returncode in (0, 1) else []
        problems = [f"{row['of']}: {row['text']}" for row in rows if row["status"] == "FAIL"]
        yield _record(name, done, problems, rows=rows)


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
    commands = {name: ["-m", "perf.first_call", name] for name in TELLING}
    for name, done in side_by_side(commands, stage.facts["workers"]):
        yield _record(name, done)


def block_sizes(item: str, stage: Stage) -> Iterator[Record]:
    """Run `python -m perf tune` for a workload's training step; it goes on where a run that was cut ended."""
    command = ["-m", "perf", "tune", "--workloads", item, "--only", "*ward/*", "--out", str(stage.out)]
    command += ["--table", str(stage.out / "block-sizes.json")]
    ((_, done),) = side_by_side({item: command}, 1)
    yield _record(item, done)


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
    if done.returncode:
        print(done.stdout)  # to the log
    problem = "; ".join(problems) or f"exit code {done.returncode}, see evidence.log"
    return {
        "what": what,
        "ok": done.returncode == 0,
        "problem": problem if done.returncode else "",
        **content,
    }
