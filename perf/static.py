"""``python -m perf static``: what the compiler makes of the kernels, without a GPU."""

import argparse
import functools
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
import torch
from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK, chosen, setting
from perf.files import Row
from perf.kernels import ahead, compiled
from perf.measuring.passes import PASSES
from perf.measuring.providers import operator
from perf.measuring.suite import one_line
from perf.measuring.workloads import QUICK, WORKLOADS, Workload
from perf.tuning import launches

_SHOWN = ("registers", "spills", "stack", "shared", "instructions", "fp64", "atomics")
_SHOWN += ("loads", "wide_loads", "stores", "wide_stores", "seconds")


def main(args: argparse.Namespace) -> int:
    """Compile, print, and report what does not compile."""
    names, archs = (QUICK, ["sm_90"]) if args.quick else (None, None)
    archs = chosen("--arch", args.arch or archs, compiled.ARCHITECTURES)
    names = chosen("--workloads", args.workloads or names, WORKLOADS)
    made, problems = [], []
    for row in rows([(name, arch) for name in names for arch in archs]):
        (problems if "problem" in row else made).append(row)
        if args.json:
            print(json.dumps(row), flush=True)
    if made and not args.json:
        print(summary(pd.DataFrame(made)))
    for row in problems:
        print(row["problem"], file=sys.stderr)
    return EXIT_FAILED if problems else EXIT_OK


def described(workload: Workload, arch: str, made: ahead.Compiled) -> Row:
    """Facts of a kernel that a workload launches."""
    row = {"arch": arch, "kernel": made.name, "call": workload.name, "config": made.config}
    return {**row, **compiled.described(made.kernel, arch), "seconds": round(made.seconds, 2)}


def rows(tasks: Sequence[tuple[str, str]], describe: Callable[..., Row] = described) -> Iterator[Row]:
    """Compile the kernels that workloads launch in training, in parallel processes.

    Args:
        tasks: names of workloads, each with an architecture.
        describe: makes the row of a kernel, from the arguments of `described`.

    Yields:
        A row per kernel. For a task that fails, a row with its ``problem``.

    Raises:
        UsageError: Triton's interpreter is on.
    """
    setting.check_not_interpreted("interpreted kernels cannot be compiled")
    bar = {"total": len(tasks), "file": sys.stderr, "disable": None, "leave": False}
    print(
        f"to compile: {len(tasks)} times the kernels of a workload, ten seconds of a core each",
        file=sys.stderr,
    )
    with tempfile.TemporaryDirectory(prefix="stn_triton_") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # seconds to compile are those of an empty cache
        with multiprocessing.get_context("spawn").Pool(min(len(tasks), os.cpu_count() or 1)) as pool:
            for found in tqdm(pool.imap(functools.partial(_rows, describe), tasks), "compiling", **bar):
                yield from found


def _rows(describe: Callable[..., Row], task: tuple[str, str]) -> list[Row]:
    name, arch = task
    workload = WORKLOADS[name]
    try:
        found = ahead.compile_call(lambda: _train(workload), compiled.target_of(arch))
        return [describe(workload, arch, made) for made in found]
    except Exception as error:  # of Triton or of one of its tools
        return [{"problem": f"{name} on {arch}: does not compile: {one_line(error)}"}]


def _train(workload: Workload) -> None:
    """Make the calls that together launch every kernel that a training step may need."""
    data = launches.dry(workload, torch.device("cpu"))
    for name in launches.passes_of(workload):
        PASSES[name](operator, data)()


def summary(table: pd.DataFrame) -> str:
    """Describe a table of kernels in text: a line per architecture and kind of kernel."""
    parts = table["kernel"].str.split("/", expand=True).reindex(columns=range(4)).fillna("")
    by_kind = table.assign(kind=parts[0], layout=parts[2], dtype=parts[3])
    columns = {"kernels": ("kernel", "nunique"), **{name: (name, "max") for name in _SHOWN}}
    columns["occupancy"] = ("occupancy", "min")
    worst = by_kind.groupby(["arch", "kind", "layout", "dtype"], sort=False).agg(**columns).reset_index()
    text = worst.to_string(index=False, formatters={"occupancy": "{:.0%}".format})
    return (
        f"{text}\nthe worst of the kernels each; registers per thread; stack and shared memory in bytes;\n"
        "wide: 128 bits; seconds of a processor to compile"
    )
