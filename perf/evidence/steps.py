"""The steps of `python -m perf evidence`, the most telling first: commands, and how their results are read.

A reader gets the record of a command and the directory of all results; it returns the problems, a line each.
The exit code is None if the command was ended. A reader may add to the record.
"""

import itertools
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from perf import EXIT_FAILED, files
from perf.files import FAILED, OPERATOR
from perf.measuring import maps, suite
from perf.measuring.workloads import WORKLOADS
from stn_triton.check.rows import ROWS

TELLING = [
    *("images-224", "features-64", "digits-28", "volume-160", "crops-7", "features-256-bf16-channels-last"),
    *("images-224-bf16", "features-64-channels-last", "pooled-7", "border-224", "antialias-2", "antialias-4"),
]
"""The most telling workloads first, because the end of the time cuts the last ones."""
_FURTHER = [name for name, workload in WORKLOADS.items() if name not in TELLING and not workload.sweep]
_CHANNELS = [f"channels-{n}" for n in (1, 4, 16, 64, 256)]
_PAIRS = ("eager-corners", "eager-broadcast")
_PER_BENCH = 2  # workloads in a command, which needs about ten seconds to begin and to draw
_PYTEST = [  # without plugins and `tests/conftest.py`
    *("-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", "--noconftest", "-W", "ignore"),
    *("-p", "no:cacheprovider", "--tb", "line", "tests/test_gpu.py", "-k"),
]
_DTYPES = ("float32", "float64", "bfloat16", "float16 and not bfloat16")
_KINDS = list(itertools.product(("nchw", "channels_last"), _DTYPES, ("True", "False")))
TESTS = [f"within_twice and {' and '.join(kind)}" for kind in _KINDS]
TESTS += ["graph", "waits", "not graph and not waits and not within_twice and not 2_31"]
"""The tests of a GPU in parts, as pytest selects them."""
LARGE_TESTS = "2_31"  # those that need most of a GPU's memory
Record = dict[str, Any]  # a command with its result, or results of many, for JSON


def exit_code(record: Record, out: Path) -> list[str]:
    """Any other exit code than 0 is a problem."""
    code = record["exit"] or 0
    reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return [f"{reason}, see evidence.log"] if code else []


def read_facts(record: Record, out: Path) -> list[str]:
    """Keep the facts of the machine."""
    record["facts"] = json.loads(record["printed"]) if record["exit"] == 0 else {}
    return exit_code(record, out)


def read_text(record: Record, out: Path) -> list[str]:
    """Keep the text for the summary, which has the facts of the machine already."""
    lines = record["printed"].splitlines()
    record["text"] = "\n".join(line for line in lines if " · commit " not in line)
    return exit_code(record, out)


def read_check(record: Record, out: Path) -> list[str]:
    """Read the rows of ``python -m stn_triton check --json``."""
    rows = json.loads(record["printed"])["rows"] if record["exit"] in (0, 1) else []
    failed = [f"{row['of']}: {row['text']}" for row in rows if row["status"] == "FAIL"]
    return failed or exit_code(record, out)


def read_tests(record: Record, out: Path) -> list[str]:
    """Read the failed tests of pytest."""
    lines = record["printed"].splitlines()
    return [line for line in lines if line.startswith(("FAILED", "ERROR"))] or exit_code(record, out)


def read_bench(record: Record, out: Path) -> list[str]:
    """Add the rows of ``bench`` to speed.csv, whose last rows count; a rival's failure is no problem.

    All rows get the facts that the first command found: the rows of one machine are one run.
    """
    path = Path(record["command"][-1]) / "speed.csv"
    if not path.exists():
        return exit_code(record, out)
    # The last line may be cut off, because the process may have been ended while it wrote.
    table = pd.read_csv(path, dtype=str).dropna(subset="date")
    if (out / "speed.csv").exists():
        table = table.assign(**pd.read_csv(out / "speed.csv", dtype=str, nrows=1)[files.FACTS].iloc[0])
    files.append(table, out / "speed.csv")
    failed = table[table["status"] == FAILED].fillna("")
    is_grave = (failed["provider"] == OPERATOR) | failed["reason"].str.startswith(suite.LOST)
    lines = [" ".join(row) for row in failed[is_grave][[*files.CELL, "provider", "reason"]].to_numpy()]
    is_explained = record["exit"] == EXIT_FAILED and len(failed)
    return lines or ([] if is_explained else exit_code(record, out))


@dataclass(frozen=True)
class Step:
    """A part of the evidence."""

    name: str
    what: str
    seconds: float  # on an H200 with 16 cores; the time left is shared in proportion
    commands: Mapping[str, Sequence[str]]  # arguments of Python, by a name
    read: Callable[[Record, Path], list[str]] = exit_code
    side_by_side: bool = False  # whether as many run at once as the machine has workers


def steps(out: Path, rehearse: bool) -> list[Step]:
    """Make the steps, whose commands write into ``out``; those of a rehearsal are small and need no GPU."""
    device = ["--device", "cpu" if rehearse else "cuda"]
    names, tests, rows = TELLING, TESTS, [row.name for row in reversed(ROWS)]  # the last compile the most
    if rehearse:
        names, tests, rows = ["digits-28"], TESTS[:1], ["identity"]

    def each(names: Sequence[str], *arguments: str) -> dict[str, list[str]]:
        return {name: [*arguments, name] for name in names}

    def bench(names: Sequence[str], providers: Sequence[str], *map_names: str) -> dict[str, list[str]]:
        options = [*device, *["--quick"] * rehearse, "--maps", *map_names, "--providers", *providers]
        options += ["--passes", "forward", "forward+backward", "--workloads"]
        parts = [names[i : i + _PER_BENCH] for i in range(0, len(names), _PER_BENCH)]
        outs = {", ".join(part): [*part, "--out", f"{out}/bench-{part[0]}"] for part in parts}
        return {name: ["-m", "perf", "bench", *options, *arguments] for name, arguments in outs.items()}

    perf, small = ["-m", "perf"], [*_PYTEST[:-1], "--collect-only", "-k"] if rehearse else _PYTEST
    facts = each([device[1]], "-m", "perf.setting")
    checks = each(rows, "-m", "stn_triton", "check", *device, "--quick", "--json", "--only")
    ahead = {name: ["-m", "perf.first_call", name, *["--stub"] * rehearse] for name in names}
    if not rehearse:
        both = [WORKLOADS[name] for name in (*names, *_CHANNELS)]
        able = [w.name for w in both if not w.crops and "antialias" not in w.options]
        ahead |= {f"{name}, scatter": ["-m", "perf.first_call", name, "--scatter"] for name in able}
    speed = bench(names, [*_PAIRS, "scatter"], "identity", maps.RANDOM)
    first = each(names[:4], *perf, "overhead", *device, "--first-calls")
    found = [
        # The first has time for the first imports on a machine, which may take long.
        Step("machine", "hardware, versions", 60, facts, read_facts),
        Step("check", "stn_triton check --quick", 140, checks, read_check, side_by_side=True),
        Step("tests", "the tests marked gpu", 40, each(tests, *small), read_tests, side_by_side=True),
        Step("compile", "compile what is timed", 40, ahead, side_by_side=True),
        Step("speed", "against PyTorch, and gather against scatter", 110, speed, read_bench),
        Step("host", "host time of a call", 20, {"overhead": [*perf, "overhead", *device]}, read_text),
        Step("first-calls", "seconds of a first call", 50, first, read_text),
    ]
    if rehearse:
        return found
    options = ["--only", "forward/*", "backward/*", "scatter/*", "--out", str(out)]
    tune = each(names, *perf, "tune", *options, "--table", f"{out}/block-sizes.json", "--workloads")
    backward, further = bench(_CHANNELS, ["scatter"], maps.RANDOM), bench(_FURTHER, _PAIRS, maps.RANDOM)
    return [
        *found,
        Step("large-tests", "those that need much memory", 15, each([LARGE_TESTS], *_PYTEST), read_tests),
        Step("backward", "gather against scatter, by channels", 25, backward, read_bench),
        Step("blocks", "the fastest block sizes", 45, tune, read_text),
        Step("further", "against PyTorch, other workloads", 60, further, read_bench),
    ]
