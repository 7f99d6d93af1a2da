"""``python -m perf static``: what the compiler makes of the kernels, without a GPU."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK, UsageError, chosen

if TYPE_CHECKING:  # they import Triton, which may yet be told to interpret
    from perf.kernels.ahead import Launch
    from perf.kernels.calls import VariantCall, WorkloadCall
    from stn_triton.tuning import Config

Row = dict[str, Any]


class Kernel(NamedTuple):
    """What one process compiles: a launch of a call."""

    call: WorkloadCall | VariantCall
    launch: Launch
    arch: str
    config: Config | None = None
    """The block sizes if not the default ones."""


def main(args: argparse.Namespace) -> int:
    """Compile, print, and compare with what is recorded."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise UsageError("TRITON_INTERPRET is set: interpreted kernels cannot be compiled; unset it")
    from perf.kernels import compiled, yardstick

    for arch in args.arch:
        if arch not in compiled.ARCHITECTURES:
            known = ", ".join(compiled.ARCHITECTURES)
            raise UsageError(f"--arch: unknown architecture {arch!r}; available: {known}")
    is_yardstick = args.quick or args.record or args.check
    if (is_yardstick or args.space is not None) and args.arch != list(compiled.ARCHITECTURES):
        raise UsageError(f"--arch: what is counted is always of {yardstick.ARCH}; leave --arch out")
    if args.every < 1:
        raise UsageError(f"--every: expected a number from 1 on, got {args.every}")
    if args.out is not None and args.space is None:
        raise UsageError("--out: only --space writes a table")
    with tempfile.TemporaryDirectory(prefix="stn_triton_") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # seconds to compile are those of an empty cache
        if args.space is not None:
            from perf.kernels import space

            return space.main(args, _compiled)
        archs = [yardstick.ARCH] if is_yardstick else args.arch
        rows = []
        for row in _compiled(_kernels(args, is_yardstick, archs)):
            rows.append(row)
            if args.json:
                print(json.dumps(row), flush=True)
    made = [row for row in rows if "registers" in row]
    if made and not args.json:
        print(summary(pd.DataFrame(made)))
    status = _judge(args, rows, yardstick)
    return status if len(made) == len(rows) else EXIT_FAILED


def _kernels(args: argparse.Namespace, is_yardstick: bool, archs: Sequence[str]) -> list[Kernel]:
    from perf.kernels import calls, yardstick
    from perf.measuring.workloads import WORKLOADS

    if args.variants:
        made = calls.variants()
    elif is_yardstick:
        made = calls.of_workloads(yardstick.workloads(), mixed=False)
    else:
        names = args.workloads or dict.fromkeys((*yardstick.NAMES, *WORKLOADS))
        made = calls.of_workloads([WORKLOADS[n] for n in chosen("--workloads", names, WORKLOADS)])
    return [Kernel(*found, arch) for found in launched(made)[:: args.every] for arch in archs]


def launched(
    calls: Sequence[WorkloadCall | VariantCall], by: str = "key"
) -> list[tuple[WorkloadCall | VariantCall, Launch]]:
    """What calls launch with default block sizes: each kernel or bucket, with the first call that does."""
    from perf.kernels import ahead, compiled, yardstick

    found = {}
    for call in tqdm(calls, "looking which kernels calls launch", file=sys.stderr, disable=None, leave=False):
        for launch in ahead.launches_of(call.run, compiled.target_of(yardstick.ARCH)):
            found.setdefault(getattr(launch, by), (call, launch))
    return list(found.values())


def _compiled(kernels: Sequence[Kernel]) -> Iterator[Row]:
    """A row per kernel, in order, from as many processes as there are processors, with progress."""
    print(f"compiling {len(kernels)} kernels", file=sys.stderr)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        rows = pool.imap(_facts, kernels, chunksize=1)
        yield from tqdm(rows, "compiling", len(kernels), file=sys.stderr, disable=None, leave=False)


def _facts(kernel: Kernel) -> Row:
    """What the machine code of a kernel shows, how long it took to compile, and what a thread executes.

    The latter only where loops can be counted; ``problem`` says why not, or why it does not compile.
    """
    from perf.kernels import ahead, calls, compiled, yardstick
    from perf.measuring.suite import one_line
    from stn_triton import policy

    call, launch, arch, config = kernel
    row: Row = {"arch": arch, "kernel": launch.name, "call": call.name}
    if launch.bucket is not None:
        config = config or policy.default(launch.bucket)
        row["config"] = config
    try:
        result, made = ahead.compile_launch(call.run, launch, compiled.target_of(arch), config)
    except Exception as error:  # of Triton or of one of its tools
        return row | {"problem": f"does not compile: {one_line(error)}"}
    row |= compiled.described(made, arch) | {"seconds": round(result["seconds"], 2)}
    code = row.pop("code", None)
    if code is not None and launch.bucket is not None and isinstance(call, calls.WorkloadCall):
        try:
            row |= yardstick.counts(code, launch.bucket, config, call.workload.shape[1])
        except ValueError as error:
            row["problem"] = f"not counted: {error}"
    return row


def _judge(args: argparse.Namespace, rows: list[Row], yardstick) -> int:
    """Say what cannot be counted; record or compare the yardstick's counts if asked to."""
    for row in rows:
        if "problem" in row:
            print(f"{row['kernel']} of {row['call']} on {row['arch']}: {row['problem']}", file=sys.stderr)
    if not (args.record or args.check):
        return EXIT_OK
    measures = yardstick.measures(rows)
    if args.record:
        yardstick.record(measures)
        print(f"recorded in {yardstick.RECORD}", file=sys.stderr)
        return EXIT_OK
    known = yardstick.recorded()
    if not known:
        print("nothing is recorded for this version of Triton: --record does that", file=sys.stderr)
        return EXIT_FAILED
    lines = [*yardstick.worse(measures, known), *yardstick.too_much(measures)]
    fine = "no kernel executes more than recorded, spills or takes long to compile"
    print("\n".join(lines) or fine, file=sys.stderr)
    return EXIT_FAILED if lines else EXIT_OK


def summary(table: pd.DataFrame) -> str:
    """A line per architecture and kernel, then what a thread executes, and what spills or compiles slowly."""
    from perf.kernels.yardstick import MOST_SECONDS

    parts = table["kernel"].str.split("/", expand=True).reindex(columns=range(4)).fillna("")
    by_kind = table.assign(kind=parts[0], layout=parts[2], dtype=parts[3])
    columns = {
        "kernels": ("kernel", "size"),
        **{name: (name, "max") for name in ("registers", "spills", "shared")},
        "occupancy": ("occupancy", "min"),
        **{name: (name, "max") for name in ("instructions", "loads", "wide_loads", "stores", "wide_stores")},
        **{name: (name, "max") for name in ("atomics", "seconds")},
    }
    worst = by_kind.groupby(["arch", "kind", "layout", "dtype"], sort=False).agg(**columns).reset_index()
    lines = [
        worst.to_string(index=False, formatters={"occupancy": "{:.0%}".format}),
        "the worst of the kernels each; registers per thread; shared memory in bytes; wide: 128 bits;",
        "seconds of a processor to compile",
    ]
    if "per_element" in table:
        names = ["arch", "call", "kernel", "per_element", "enlarged", "inner_loop"]
        counted = table[table["per_element"].notna()].reindex(columns=names)
        lines += ["", "instructions that a thread executes per element:"]
        lines.append(counted.to_string(index=False, na_rep="-"))
    lines += [f"spills {r.spills}: {r.kernel} on {r.arch}" for r in table[table["spills"] > 0].itertuples()]
    slow = table[table["seconds"] > MOST_SECONDS]
    lines += [f"takes {r.seconds:.1f} s to compile: {r.kernel} for {r.arch}" for r in slow.itertuples()]
    return "\n".join(lines)
