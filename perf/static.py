"""``python -m perf static``: what the compiler makes of the kernels, without a GPU."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK, UsageError, chosen

if TYPE_CHECKING:  # imported later, after a look at TRITON_INTERPRET
    from perf.kernels.ahead import Compiled
    from perf.kernels.calls import VariantCall, WorkloadCall

Row = dict[str, Any]


def main(args: argparse.Namespace) -> int:
    """Compile, print, and compare with what is recorded."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise UsageError("TRITON_INTERPRET is set: interpreted kernels cannot be compiled; unset it")
    if args.every < 1:
        raise UsageError(f"--every: expected a number from 1 on, got {args.every}")
    with tempfile.TemporaryDirectory(prefix="stn_triton_") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # seconds to compile are those of an empty cache
        rows = []
        for row in _compiled(_tasks(args)):
            rows.append(row)
            if args.json:
                print(json.dumps(row), flush=True)
    if args.out is not None:
        _flat(rows).to_csv(args.out, index=False)
    made = [row for row in rows if "registers" in row]
    if made and not args.json:
        print(summary(_flat(made), has_configs=args.space))
    for row in rows:
        if "problem" in row:
            kernel = f"{row['kernel']} of " if "kernel" in row else ""
            print(f"{kernel}{row['call']} on {row['arch']}: {row['problem']}", file=sys.stderr)
    status = _judge(args, rows)
    return status if len(made) == len(rows) else EXIT_FAILED


def _tasks(args: argparse.Namespace) -> list[tuple]:
    """List what one process compiles at a time: arguments of `_rows`."""
    from perf.kernels import calls, compiled, yardstick
    from perf.measuring.workloads import WORKLOADS

    is_yardstick = args.quick or args.record or args.check
    archs = args.arch or ([yardstick.ARCH] if is_yardstick or args.space else compiled.ARCHITECTURES)
    archs = chosen("--arch", archs, compiled.ARCHITECTURES)
    chosen("--workloads", args.workloads, WORKLOADS)
    default = yardstick.NAMES if is_yardstick else dict.fromkeys((*yardstick.NAMES, *WORKLOADS))
    made = [calls.WorkloadCall(WORKLOADS[name]) for name in args.workloads or default]
    made = (calls.variants() if args.variants else made)[:: args.every]
    return [
        (call, arch, choice) for call in made for arch in archs for choice in range(16 if args.space else 1)
    ]


def _compiled(tasks: Sequence[tuple]) -> Iterator[Row]:
    """Yield a row for each kernel, with progress, from as many processes as there are processors."""
    progress = {"total": len(tasks), "file": sys.stderr, "disable": None, "leave": False}
    with contextlib.ExitStack() as stack:
        found = map(_rows, tasks)
        if len(tasks) > 1:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(os.cpu_count()))
            found = pool.imap(_rows, tasks, chunksize=1)
        for rows in tqdm(found, "compiling", **progress):
            yield from rows


def _rows(task: tuple[WorkloadCall | VariantCall, str, int]) -> list[Row]:
    """Compile the kernels of a call for an architecture, each in a configuration of its space.

    Returns:
        A row per kernel: what its machine code shows, instructions per element, and seconds to compile unless
        Triton's cache had it. ``problem`` says what does not compile, or cannot be counted.
    """
    from perf.kernels import ahead, compiled
    from perf.measuring.suite import one_line
    from stn_triton import policy

    call, arch, number = task
    try:
        found = ahead.compile_call(
            call.run,
            compiled.target_of(arch),
            lambda bucket, run: (policy.space(bucket)[number:] or [policy.default(bucket)])[0],
            lambda bucket: number == 0 or (bucket and number < len(policy.space(bucket))),
        )
        return [_row(call, arch, one) for one in found]
    except Exception as error:  # of Triton or of one of its tools
        return [{"arch": arch, "call": call.name, "problem": f"does not compile: {one_line(error)}"}]


def _row(call: WorkloadCall | VariantCall, arch: str, made: Compiled) -> Row:
    from perf.kernels import calls, compiled, yardstick

    row: Row = {"arch": arch, "kernel": made.name, "call": call.name}
    row |= {"config": made.config} if made.config else {}
    row |= compiled.described(made.kernel, arch)
    row |= {} if made.is_cached else {"seconds": round(made.seconds, 2)}
    code = row.pop("code", None)
    if code is not None and made.bucket is not None and isinstance(call, calls.WorkloadCall):
        try:
            row |= yardstick.counts(code, made.bucket, made.config, call.workload.shape[1])
        except ValueError as error:
            row["problem"] = f"not counted: {error}"
    return row


def _judge(args: argparse.Namespace, rows: list[Row]) -> int:
    """Record the instructions per element, or compare them with the record, and return the exit code."""
    from perf.kernels import yardstick

    if args.record:
        yardstick.record(yardstick.measures(rows))
        print(f"recorded in {yardstick.RECORD}", file=sys.stderr)
        return EXIT_OK
    if not args.check:
        return EXIT_OK
    known = yardstick.recorded()
    if not known:
        print("nothing is recorded for this version of Triton: --record does that", file=sys.stderr)
        return EXIT_FAILED
    lines = list(yardstick.faults(yardstick.measures(rows), known))
    fine = "no kernel executes more than recorded, spills or takes long to compile"
    print("\n".join(lines) or fine, file=sys.stderr)
    return EXIT_FAILED if lines else EXIT_OK


def _flat(rows: Sequence[Row]) -> pd.DataFrame:
    """A table of rows, with a column for each of the block sizes."""
    return pd.DataFrame([{**row, **(row.get("config") or {})} for row in rows]).drop(
        columns="config", errors="ignore"
    )


def summary(table: pd.DataFrame, has_configs: bool = False) -> str:
    """Describe a table of kernels in text.

    A line per architecture and kind of kernel; then the instructions per element; then the kernels that spill
    or compile slowly. With ``has_configs`` instead a line per kernel and block sizes.
    """
    from perf.kernels.yardstick import COUNTS, MOST_SECONDS
    from stn_triton.policy import CONFIG_KEYS

    table = table.reindex(columns=[*table.columns, *(name for name in COUNTS if name not in table)])
    if has_configs:
        names = ["arch", "kernel", *CONFIG_KEYS, *COUNTS, "registers", "spills", "occupancy", "seconds"]
        return _text(table[names])
    parts = table["kernel"].str.split("/", expand=True).reindex(columns=range(4)).fillna("")
    largest = (
        "registers",
        "spills",
        "shared",
        "instructions",
        "loads",
        "wide_loads",
        "stores",
        "wide_stores",
    )
    columns = {
        "kernels": ("kernel", "nunique"),
        **{name: (name, "max") for name in (*largest, "atomics", "seconds")},
    }
    columns["occupancy"] = ("occupancy", "min")
    by_kind = table.assign(kind=parts[0], layout=parts[2], dtype=parts[3])
    worst = by_kind.groupby(["arch", "kind", "layout", "dtype"], sort=False).agg(**columns).reset_index()
    lines = [
        _text(worst),
        "the worst of the kernels each; registers per thread; shared memory in bytes; wide: 128 bits;",
        "seconds of a processor to compile",
    ]
    counted = table.loc[table["per_element"].notna(), ["arch", "call", "kernel", *COUNTS]]
    if len(counted):
        lines += ["", "instructions that a thread executes per element:", _text(counted)]
    lines += [f"spills {r.spills}: {r.kernel} on {r.arch}" for r in table[table["spills"] > 0].itertuples()]
    slow = table[table["seconds"] > MOST_SECONDS]
    lines += [f"takes {r.seconds:.1f} s to compile: {r.kernel} for {r.arch}" for r in slow.itertuples()]
    return "\n".join(lines)


def _text(table: pd.DataFrame) -> str:
    return table.to_string(index=False, na_rep="-", formatters={"occupancy": "{:.0%}".format})
