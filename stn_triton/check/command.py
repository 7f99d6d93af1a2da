"""``python -m stn_triton check``: run the rows, print them as they are done, say what to do if one fails."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence

from stn_triton import environment
from stn_triton.check import engine as engines
from stn_triton.check import printing
from stn_triton.check.engine import Engine
from stn_triton.check.judge import CallError, Finding
from stn_triton.check.printing import Line, Progress
from stn_triton.check.rows import ROWS, Row
from stn_triton.terminal import EXIT_FAILED, EXIT_OK, UsageError

LOST = "the GPU has not responded since the failure above: this row would mean nothing"


def main(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    rows = chosen(args.only)
    engine = engines.choose(args.device, args.interpret)
    facts = environment.facts(engine.device)
    again = _again(args)
    if not args.json:
        print(printing.head(engine, facts), flush=True)
    began = time.monotonic()
    lines = run(rows, engine, args.quick, None if args.json else printing.Table())
    seconds = time.monotonic() - began
    if args.json:
        found = printing.as_json(lines, engine, facts, args.quick, seconds)
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        print(printing.foot(lines, engine, seconds, again), flush=True)
    return EXIT_FAILED if any(line.status == "FAIL" for line in lines) else EXIT_OK


def chosen(words: Sequence[str] | None) -> list[Row]:
    """Select the row that a word names, or else all rows whose names contain it; all rows for None.

    Raises:
        UsageError: a word is in no name.
    """
    wanted = set()
    for word in words or ():
        own = {row.name for row in ROWS if row.name == word}
        own = own or {row.name for row in ROWS if word and word.lower() in row.name.lower()}
        if not own:
            listing = "; ".join(row.name for row in ROWS)
            raise UsageError(f"--only: no row has {word!r} in its name; there are: {listing}")
        wanted |= own
    return [row for row in ROWS if words is None or row.name in wanted]


def run(rows: Sequence[Row], engine: Engine, quick: bool, table: printing.Table | None = None) -> list[Line]:
    """Run rows on an engine, show the progress, and return the lines of the table.

    If the GPU stops responding, the rows that follow are skipped.
    """
    lines: list[Line] = []
    progress = Progress(len(rows))
    is_lost = False
    with engines.running(engine):
        for row in rows:
            progress.begin(row.name)
            own = [_skipped(row, LOST)] if is_lost else _run_row(row, engine, quick, progress)
            progress.end()
            is_lost = is_lost or (any(line.status == "FAIL" for line in own) and engine.is_lost())
            lines += own
            if table is not None:
                table.add(own)
    return lines


def _run_row(row: Row, engine: Engine, quick: bool, progress: Progress) -> list[Line]:
    reason = row.unavailable(engine)
    if reason is not None:
        return [_skipped(row, reason)]
    found: dict[str, list[Finding]] = {}
    try:
        for findings in row.find(engine, quick):
            for finding in findings:
                found.setdefault(printing.group(finding.part), []).append(finding)
            progress.step()
    except CallError as error:
        text, call = error.args
        found.setdefault("", []).append(Finding("", math.inf, 0.0, text, call))
    except Exception as error:  # an error of the check itself: the other rows still count
        found.setdefault("", []).append(Finding("", math.inf, 0.0, f"{type(error).__name__}: {error}"))
    # A row that compared nothing has shown nothing, and fails.
    found = found or {"": [Finding("", math.inf, 0.0, "there was nothing to compare")]}
    return [Line.of(row, group, findings) for group, findings in found.items()]


def _skipped(row: Row, reason: str) -> Line:
    return Line(row.section, row.name, "", 0, 0, None, reason)


def _again(args: argparse.Namespace) -> str:
    """The command line without ``--only``."""
    words = ["python -m stn_triton check"]
    words += ["--quick"] if args.quick else []
    words += ["--interpret"] if args.interpret else []
    words += [f"--device {args.device}"] if args.device else []
    return " ".join(words)
