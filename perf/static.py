"""``python -m perf static``: what the compiler makes of the kernels, without a GPU."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator

import pandas as pd
from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK, UsageError


def main(args: argparse.Namespace) -> int:
    """Compile, print, and compare with what is recorded."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise UsageError("TRITON_INTERPRET is set: interpreted kernels cannot be compiled; unset it")
    from perf.kernels import cases, compiled, yardstick

    for arch in args.arch:
        if arch not in compiled.ARCHITECTURES:
            known = ", ".join(compiled.ARCHITECTURES)
            raise UsageError(f"--arch: unknown architecture {arch!r}; available: {known}")
    if (args.quick or args.record or args.check) and args.arch != list(compiled.ARCHITECTURES):
        raise UsageError(f"--arch: the yardstick is always of {yardstick.ARCH}; leave --arch out")
    if args.every < 1:
        raise UsageError(f"--every: expected a number from 1 on, got {args.every}")

    rows = []
    if not (args.quick or args.record or args.check):
        chosen = (cases.every_variant if args.variants else cases.shipped)(args.arch)[:: args.every]
        print(f"compiling {len(chosen)} kernels", file=sys.stderr)
        for row in _map(_facts, chosen, "compiling"):
            rows.append(row)
            if args.json:
                print(json.dumps(row), flush=True)
        if not args.json:
            print(summary(pd.DataFrame(rows)))
    if args.variants:  # the yardstick is of the plain operator
        return EXIT_OK
    return _yardstick(args, yardstick)


def _yardstick(args: argparse.Namespace, yardstick) -> int:
    measures = dict(_map(yardstick.measure, yardstick.buckets(), "instructions per element"))
    known = yardstick.recorded()
    if args.json:
        for name, numbers in measures.items():
            print(json.dumps({"bucket": name, "arch": yardstick.ARCH, **numbers}))
    else:
        table = pd.DataFrame.from_dict(measures, orient="index").rename_axis("kernel").reset_index()
        table["recorded"] = [known.get(name, {}).get("per_element", "-") for name in measures]
        print(f"\nInstructions that a thread executes per element ({yardstick.ARCH}, default configurations)")
        print(table.to_string(index=False))
    if args.record:
        yardstick.record(measures)
        print(f"recorded in {yardstick.RECORD}", file=sys.stderr)
        return EXIT_OK
    if args.check:
        if not known:
            print("nothing is recorded for this version of Triton: --record does that", file=sys.stderr)
            return EXIT_FAILED
        lines = list(yardstick.worse(measures, known))
        print("\n".join(lines) or "no kernel executes more than recorded", file=sys.stderr)
        return EXIT_FAILED if lines else EXIT_OK
    return EXIT_OK


def summary(table: pd.DataFrame) -> str:
    """A line per architecture, kernel, layout and dtype: the worst of its configurations."""
    parts = table["bucket"].str.split("/", expand=True)
    table = table.assign(kernel=parts[0], layout=parts[2], dtype=parts[3])
    worst = table.groupby(["arch", "kernel", "layout", "dtype"], sort=False).agg(
        kernels=("bucket", "size"),
        registers=("registers", "max"),
        spills=("spills", "max"),
        shared=("shared", "max"),
        occupancy=("occupancy", "min"),
        instructions=("instructions", "max"),
        loads=("loads", "max"),
        wide_loads=("wide_loads", "max"),
        stores=("stores", "max"),
        wide_stores=("wide_stores", "max"),
        atomics=("atomics", "max"),
    )
    lines = [worst.reset_index().to_string(index=False, formatters={"occupancy": "{:.0%}".format})]
    lines.append(
        "registers per thread; shared memory in bytes; wide: 128 bits; the worst of the kernels each"
    )
    spilling = table[table["spills"] > 0]
    lines += [f"spills {row.spills}: {row.bucket} on {row.arch}" for row in spilling.itertuples()]
    return "\n".join(lines)


def _facts(case: tuple[tuple, dict]) -> dict[str, object]:
    from perf.kernels import compiled

    facts = compiled.facts(*case[0], **case[1])
    facts.pop("code", None)
    return {**facts, **{key: str(value) for key, value in case[1].items()}}


def _map(function: Callable, items: list, title: str) -> Iterator:
    """The results in order, from as many processes as there are processors, with progress."""
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        results: Iterable = pool.imap(function, items, chunksize=1)
        yield from tqdm(results, total=len(items), desc=title, file=sys.stderr, disable=None, leave=False)
