"""What every configuration of a bucket's space costs, counted in machine code: ``perf static --space``."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import triton

from perf import EXIT_OK, chosen
from perf.kernels import calls, yardstick
from perf.measuring.workloads import WORKLOADS
from perf.static import Kernel, Row, launched
from stn_triton import policy

RECORD = Path(__file__).parents[1] / "results" / "block-sizes-counted.csv"
FACTS = ("per_element", "enlarged", "registers", "spills", "occupancy", "seconds", "problem")
COLUMNS = ("triton", "arch", "kernel", "call", *policy.CONFIG_KEYS, "default", *FACTS)
_PASSES = ("forward", "backward")


def main(args: argparse.Namespace, compiled: Callable[[Sequence[Kernel]], Iterator[Row]]) -> int:
    """Count, print a line as each is known, and write the table."""
    names = args.space or list(yardstick.NAMES)
    made = calls.of_workloads([WORKLOADS[n] for n in chosen("--space", names, WORKLOADS)], mixed=False)
    found = launched([call for call in made if call.pass_name in _PASSES], by="bucket")
    kernels = [
        Kernel(call, launch, yardstick.ARCH, config)
        for call, launch in found
        if launch.bucket is not None
        for config in policy.space(launch.bucket)
    ]
    rows = []
    for kernel, facts in zip(kernels, compiled(kernels[:: args.every]), strict=False):
        rows.append(row_of(facts, facts["config"] == policy.default(kernel.launch.bucket)))
        print(json.dumps(rows[-1]) if args.json else line_of(rows[-1]), flush=True)
    path = args.out or RECORD
    write(path, rows)
    print(f"{len(rows)} configurations; written: {path}", file=sys.stderr)
    return EXIT_OK


def row_of(facts: Row, is_default: bool) -> Row:
    """A line of the table."""
    row = {"triton": triton.__version__, **facts, **facts["config"], "default": is_default}
    return {name: row.get(name, "") for name in COLUMNS}


def line_of(row: Row) -> str:
    """A line for the screen."""
    config = " ".join(f"{row[key]:>3}" for key in policy.CONFIG_KEYS)
    star = "*" if row["default"] else " "
    facts = "  ".join(f"{row[name]} {name}" for name in FACTS if row[name] != "")
    return f"{star} {row['kernel']}: {config}: {facts}"


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows, in place of those of the same Triton; those of others stay."""
    others = []
    if path.exists():
        with path.open(newline="") as file:
            others = [row for row in csv.DictReader(file) if row["triton"] != triton.__version__]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*others, *rows], key=lambda row: row["triton"]))
