"""The steps of `python -m perf evidence`, the most telling first: each is a list of commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from perf.evidence import readings
from perf.evidence.readings import Record
from perf.measuring import maps, providers
from perf.measuring.passes import PASSES
from perf.measuring.workloads import WORKLOADS
from perf.tuning import launches
from stn_triton.check.rows import ROWS

TELLING = [
    *("images-224", "features-64", "digits-28", "volume-160", "crops-7", "features-256-bf16-channels-last"),
    *("images-224-bf16", "features-64-channels-last", "pooled-7", "border-224", "antialias-2", "antialias-4"),
]
"""The most telling workloads first, because the end of the time cuts the last ones."""
_FURTHER = [name for name, workload in WORKLOADS.items() if name not in TELLING and not workload.sweep]
_CHANNELS = [f"channels-{n}" for n in (1, 4, 16, 64, 256)]
_PAIRS = ("eager-corners", "eager-broadcast")
_PER_BENCH = 4  # workloads in a command, which needs about ten seconds to begin and to draw
_LARGE = "2_31"  # in the names of tests that need most of a GPU's memory, so they run one after the other
_PYTEST = [
    *("-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", "--noconftest", "-W", "ignore"),
    *("-p", "no:cacheprovider", "--tb", "line"),
]
"""Runs tests that need no plugins and none of `tests/conftest.py`."""
Commands = Mapping[str, Sequence[str]]
"""Arguments of Python, by names that differ within a step."""


@dataclass(frozen=True)
class Step:
    """A part of the evidence."""

    name: str
    what: str
    seconds: float  # on an H200 with 16 cores; the time left is shared in proportion
    commands: Commands | Callable[[Record], Commands]
    """The commands, or a function that makes them of the results of earlier steps."""
    read: Callable[[Record, Path], list[str]] = readings.exit_code
    side_by_side: bool = False  # whether as many run at once as the machine has workers


def steps(out: Path, rehearse: bool) -> list[Step]:
    """Make the steps, whose commands write into ``out``; those of a rehearsal are small and need no GPU."""
    device = ["--device", "cpu" if rehearse else "cuda"]
    telling = ["digits-28"] if rehearse else TELLING
    rows = ["identity"] if rehearse else [row.name for row in reversed(ROWS)]  # the last compile the most

    def bench(names: Sequence[str], map_names: Sequence[str], *rivals: str) -> Commands:
        options = [*device, *["--quick"] * rehearse, "--maps", *map_names, "--providers", *rivals]
        options += ["--passes", "forward", "forward+backward"]
        parts = [names[i : i + _PER_BENCH] for i in range(0, len(names), _PER_BENCH)]
        return {
            ", ".join(part): [
                *("-m", "perf", "bench", *options, "--workloads", *part, "--out", f"{out}/bench-{part[0]}")
            ]
            for part in parts
        }

    def tune(name: str) -> list[str]:
        step = PASSES["forward+backward"](providers.operator, launches.dry(WORKLOADS[name]))
        buckets = [bucket.name() for bucket in launches.reached(step)]
        options = ["--only", *buckets, "--out", str(out), "--table", f"{out}/block-sizes.json"]
        return ["-m", "perf", "tune", *device, "--workloads", name, *options]

    machine = {
        "facts": ["-m", "perf.setting", device[1]],
        "collect": [*_PYTEST, "--collect-only", "tests/test_gpu.py"],
    }
    checks = {row: ["-m", "stn_triton", "check", *device, "--quick", "--json", "--only", row] for row in rows}
    tests, large = (partial(_tests, rehearse, is_large) for is_large in (False, True))
    ahead = {name: ["-m", "perf.first_call", name, *["--stub"] * rehearse] for name in telling}
    speed = bench(telling, ["identity", maps.RANDOM], *_PAIRS, "scatter")
    host = {"overhead": ["-m", "perf", "overhead", *device]}
    first = {name: ["-m", "perf", "overhead", *device, "--first-calls", name] for name in telling[:4]}
    found = [
        # The first has time for the first imports on a machine, which may take long.
        Step("machine", "hardware, versions, names of tests", 40, machine, readings.machine),
        Step("check", "stn_triton check --quick", 140, checks, readings.check, side_by_side=True),
        Step("tests", "the tests marked gpu", 40, tests, readings.tests, side_by_side=True),
        Step("large-tests", "those that need much memory", 15, large, readings.tests),
        Step("compile", "compile what is timed", 40, ahead, side_by_side=True),
        Step("speed", "against PyTorch, and gather against scatter", 110, speed, readings.bench),
        Step("host", "host time of a call", 20, host, readings.text),
        Step("first-calls", "seconds of a first call", 50, first, readings.text),
    ]
    if not rehearse:
        backward = bench(_CHANNELS, [maps.RANDOM], "scatter")
        blocks = {name: tune(name) for name in TELLING}
        further = bench(_FURTHER, [maps.RANDOM], *_PAIRS)
        found += [
            Step("backward", "gather against scatter, by channels", 25, backward, readings.bench),
            Step("blocks", "the fastest block sizes", 45, blocks, readings.text),
            Step("further", "against PyTorch, other workloads", 60, further, readings.bench),
        ]
    return found


def _tests(rehearse: bool, is_large: bool, found: Record) -> Commands:
    """The collected tests in parts; a rehearsal only collects one part again."""
    listing = found["steps"]["machine"]["commands"]["collect"].get("printed", "")
    names = [name for name in listing.splitlines() if "::" in name and (_LARGE in name) == is_large]
    count = 1 if is_large or rehearse else 2 * found["machine"]["workers"]
    parts = [names[i::count] for i in range(count)]
    command = [*_PYTEST, *["--collect-only"] * rehearse]
    return {f"part {number}": [*command, *part] for number, part in enumerate(parts, 1) if part}
