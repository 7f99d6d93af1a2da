"""What the commands of a step mean: their exit codes and the results that they print.

A reader gets the record of a command and the directory of all results. It returns the problems, a line each.
The record has no exit code if the command was ended.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
from pathlib import Path
from typing import Any

import pandas as pd

from perf.files import FAILED, KEY, OPERATOR
from perf.measuring import suite

Record = dict[str, Any]
"""The result of a command or of more, for JSON."""


def exit_code(record: Record, out: Path) -> list[str]:
    """Any other exit code than 0 is a problem."""
    code = record["exit"] or 0
    reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return [f"{reason}, see evidence.log"] if code else []


def text(record: Record, out: Path) -> list[str]:
    """Keep what a command prints for the summary, but for the facts of the machine."""
    lines = [line for line in record["printed"].splitlines() if " · commit " not in line]
    record["text"] = "\n".join(lines)
    return exit_code(record, out)


def machine(record: Record, out: Path) -> list[str]:
    """Keep the facts of the machine, which one of the commands prints as JSON."""
    with contextlib.suppress(ValueError):
        record["facts"] = json.loads(record["printed"])
    return exit_code(record, out)


def check(record: Record, out: Path) -> list[str]:
    """Read the rows of ``python -m stn_triton check --json``."""
    rows = json.loads(record["printed"])["rows"] if record["exit"] in (0, 1) else []
    failed = [f"{row['of']}: {row['text']}" for row in rows if row["status"] == "FAIL"]
    return failed or exit_code(record, out)


def tests(record: Record, out: Path) -> list[str]:
    """Read the failed tests of pytest, and the number of those that passed."""
    passed = re.search(r"(\d+) passed", record["printed"])
    record["passed"] = int(passed[1]) if passed else 0
    failed = [line for line in record["printed"].splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed or exit_code(record, out)


def bench(record: Record, out: Path) -> list[str]:
    """Add the rows of ``bench`` to speed.csv, in place of older ones; a rival's failure is no problem."""
    own, all_rows = Path(record["command"][-1]) / "speed.csv", out / "speed.csv"
    if not own.exists():
        return exit_code(record, out)
    tables = [pd.read_csv(path, dtype=str) for path in (all_rows, own) if path.exists()]
    # The last line may be cut off, because the process may have been ended while it wrote.
    table = pd.concat(tables).dropna(subset=["date"])
    table.drop_duplicates(KEY, keep="last").to_csv(all_rows, index=False)
    failed = tables[-1][tables[-1]["status"] == FAILED].fillna("")
    is_grave = (failed["provider"] == OPERATOR) | failed["reason"].str.startswith(suite.LOST)
    lines = failed[["workload", "map", "pass", "provider"]].agg(" ".join, axis=1) + ": " + failed["reason"]
    return lines[is_grave].tolist() if len(failed) else exit_code(record, out)
