"""``python -m perf static``: what the compiler makes of the kernels, without a GPU."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK, UsageError, chosen, setting
from perf.kernels import ahead, compiled, yardstick
from perf.measuring.passes import PASSES
from perf.measuring.providers import operator
from perf.measuring.suite import one_line
from perf.measuring.workloads import WORKLOADS, Workload
from perf.tuning import launches

_SHOWN = ("registers", "spills", "shared", "instructions", "loads", "wide_loads", "stores", "wide_stores")


def main(args: argparse.Namespace) -> int:
    """Compile, print, and compare with what is recorded."""
    setting.check_not_interpreted("interpreted kernels cannot be compiled")
    uses_record = args.record or args.check
    is_yardstick = args.quick or uses_record
    archs = args.arch or ([yardstick.ARCH] if is_yardstick else compiled.ARCHITECTURES)
    names = args.workloads or (yardstick.NAMES if is_yardstick else WORKLOADS)
    archs = chosen("--arch", archs, compiled.ARCHITECTURES)
    names = chosen("--workloads", names, WORKLOADS)
    if uses_record and archs != [yardstick.ARCH]:
        raise UsageError(f"--arch: the record is of {yardstick.ARCH} alone; leave --arch out")
    if uses_record and (others := [name for name in names if name not in yardstick.NAMES]):
        known = ", ".join(yardstick.NAMES)
        raise UsageError(f"--workloads: {others[0]} is not recorded; available: {known}")
    tasks = [(name, arch) for name in names for arch in archs]
    rows, bar = [], {"total": len(tasks), "file": sys.stderr, "disable": None, "leave": False}
    with tempfile.TemporaryDirectory(prefix="stn_triton_") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # seconds to compile are those of an empty cache
        with multiprocessing.get_context("spawn").Pool(min(len(tasks), os.cpu_count() or 1)) as pool:
            for found in tqdm(pool.imap(_rows, tasks), "compiling", **bar):
                rows += found
                for row in found if args.json else ():
                    print(json.dumps(row), flush=True)
    return _report(args, rows)


def _rows(task: tuple[str, str]) -> list[dict[str, Any]]:
    """Compile the kernels that a workload launches in training, for an architecture.

    Returns:
        A row per kernel: what its machine code shows, instructions per element or why they are
        ``not_counted``, and seconds to compile. If the workload does not compile, one row with the
        ``problem``.
    """
    name, arch = task
    workload = WORKLOADS[name]
    try:
        found = ahead.compile_call(lambda: _train(workload), compiled.target_of(arch))
        return [_row(workload, arch, made) for made in found]
    except Exception as error:  # of Triton or of one of its tools
        return [{"arch": arch, "call": name, "problem": f"does not compile: {one_line(error)}"}]


def _train(workload: Workload) -> None:
    """Make the calls that together launch every kernel that a training step may need."""
    data = launches.dry(workload, torch.device("cpu"))
    for name in launches.passes_of(workload):
        PASSES[name](operator, data)()


def _row(workload: Workload, arch: str, made: ahead.Compiled) -> dict[str, Any]:
    facts = compiled.described(made.kernel, arch)
    code = facts.pop("code", None)
    row = {"arch": arch, "kernel": made.name, "call": workload.name, "config": made.config, **facts}
    row["seconds"] = round(made.seconds, 2)
    if code is not None and made.bucket is not None:
        try:
            count = yardstick.per_element(code, made.bucket, made.config, workload.shape[1])
            row |= {} if count is None else {"per_element": count}
        except ValueError as error:
            row["not_counted"] = str(error)
    return row


def _report(args: argparse.Namespace, rows: list[dict[str, Any]]) -> int:
    """Print the rows and what is wrong with them, record them if that is wanted, and return the exit code."""
    made = [row for row in rows if "problem" not in row]
    problems = [f"{row['call']} on {row['arch']}: {row['problem']}" for row in rows if "problem" in row]
    if made and not args.json:
        print(summary(pd.DataFrame(made)))
    if args.record:
        yardstick.record(yardstick.measures(made))
        print(f"recorded in {yardstick.RECORD}", file=sys.stderr)
    elif args.check and not yardstick.recorded():
        problems.append("nothing is recorded for this version of Triton: --record does that")
    elif args.check:
        problems += yardstick.faults(yardstick.measures(made), yardstick.recorded())
        if not problems:
            print("no kernel executes more than recorded, spills or takes long to compile", file=sys.stderr)
    for problem in problems:
        print(problem, file=sys.stderr)
    return EXIT_FAILED if problems else EXIT_OK


def summary(table: pd.DataFrame) -> str:
    """Describe a table of kernels in text.

    A line per architecture and kind of kernel, then the instructions per element, then the kernels that
    spill, compile slowly or cannot be counted.
    """
    table = table.reindex(columns=[*table.columns, *({"per_element", "not_counted"} - set(table.columns))])
    parts = table["kernel"].str.split("/", expand=True).reindex(columns=range(4)).fillna("")
    by_kind = table.assign(kind=parts[0], layout=parts[2], dtype=parts[3])
    columns = {name: (name, "max") for name in (*_SHOWN, "atomics", "seconds")}
    columns = {"kernels": ("kernel", "nunique"), **columns, "occupancy": ("occupancy", "min")}
    worst = by_kind.groupby(["arch", "kind", "layout", "dtype"], sort=False).agg(**columns).reset_index()
    lines = [
        worst.to_string(index=False, formatters={"occupancy": "{:.0%}".format}),
        "the worst of the kernels each; registers per thread; shared memory in bytes; wide: 128 bits;",
        "seconds of a processor to compile",
    ]
    counted = table[["arch", "call", "kernel", "per_element"]].dropna()
    if len(counted):
        lines += ["", "instructions that a thread executes per element:", counted.to_string(index=False)]
    lines += [f"spills {r.spills}: {r.kernel} on {r.arch}" for r in table[table["spills"] > 0].itertuples()]
    slow = table[table["seconds"] > yardstick.MOST_SECONDS]
    lines += [f"takes {r.seconds:.1f} s to compile: {r.kernel} for {r.arch}" for r in slow.itertuples()]
    unknown = table[table["not_counted"].notna()]
    lines += [f"not counted: {r.kernel} on {r.arch}: {r.not_counted}" for r in unknown.itertuples()]
    return "\n".join(lines)
