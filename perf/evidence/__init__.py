"""``python -m perf evidence``: what a GPU can show in a few minutes, the most telling first.

Each step has a process of its own, and this one uses no GPU: a crash, a hang or the end of the time costs
what was not yet measured and no more.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from perf import EXIT_FAILED, EXIT_OK, UsageError, chosen

if TYPE_CHECKING:
    import pandas as pd

WRITTEN = r"evidence\.\w+|speed\.csv|tuning\.csv|summary\.txt|block-sizes\.json"
"""What a run leaves in its directory."""


DIRECTORIES = (Path("perf-results/evidence"), Path("perf-results/rehearsal"))
"""Where results go unless --out says otherwise: of a run, and of a rehearsal."""


def main(args: argparse.Namespace) -> int:
    """Run the steps, print the summary, and return the exit code."""
    start = time.monotonic()  # imports take their time too
    from perf.evidence import outcome
    from perf.evidence.agenda import FAULTS, STEPS
    from perf.evidence.conductor import Conductor

    if not args.minutes > 0:
        raise UsageError(f"--minutes: expected a number above 0, got {args.minutes:g}")
    names = chosen("--only", args.only, [step.name for step in STEPS])
    steps = [step for step in STEPS if step.name in names or step is STEPS[0]]
    if args.count or args.plan:
        from perf.evidence import plan

        if args.count:
            return plan.count()
        print(plan.text(steps, args.minutes, args.cores or os.cpu_count() or 1))
        return EXIT_OK
    _check_device(args.rehearse)
    out = (args.out or DIRECTORIES[args.rehearse]).resolve()
    _make_room(out)
    if args.rehearse and args.only is None:
        steps += FAULTS
    conductor = Conductor(steps, 60 * args.minutes, out, args.rehearse, _to_stderr, start)
    # A lost terminal and a request to end are as Ctrl-C, which ends the steps' processes too.
    before = {one: signal.signal(one, signal.default_int_handler) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        conductor.run()
    finally:  # also of an interrupted run
        table = outcome.rows(out)
        text = outcome.text(conductor.results, table)
        (out / "summary.txt").write_text(text + "\n")
        print(json.dumps(conductor.results) if args.json else f"\n{text}", flush=True)
        _draw(table, out)
        files = ", ".join(path.name for path in _files(out))
        _to_stderr(f"\nin {out}: {files}")
        for one, handler in before.items():
            signal.signal(one, handler)
    return EXIT_OK if outcome.is_right(conductor.results) else EXIT_FAILED


def _check_device(rehearse: bool) -> None:
    """Refuse where nothing can be measured, and say what can be done there."""
    import torch

    from stn_triton import environment

    if not rehearse and not torch.cuda.is_available():
        raise UsageError(
            f"torch {torch.__version__} finds no GPU here, expected one; --rehearse plays all of it on this "
            "CPU, --plan says what it does and how long it takes"
        )
    problem = environment.interpreter_problem() if rehearse else ""
    if problem:
        raise UsageError(f"--rehearse: {problem}")


def _make_room(out: Path) -> None:
    """Make the directory, and move what an older run left in it to a directory of its own."""
    from perf.plot import make_directory

    make_directory(out)
    old = _files(out)
    if not old:
        return
    if not (out / "evidence.json").exists():
        raise UsageError(f"--out: {out} has {old[0].name} of another command; expected a directory without")
    numbers = (out / f"previous-{number}" for number in itertools.count(1))
    previous = next(path for path in numbers if not path.exists())
    previous.mkdir()
    for path in old:
        path.rename(previous / path.name)
    _to_stderr(f"moved {len(old)} files of an older run to {previous}")


def _files(out: Path) -> list[Path]:
    """The files of a directory that a run writes."""
    return [path for path in sorted(out.iterdir()) if path.is_file() and re.fullmatch(WRITTEN, path.name)]


def _draw(table: pd.DataFrame | None, out: Path) -> None:
    """The chart; that it cannot be drawn must not cost the results."""
    from perf.measuring.suite import one_line

    if table is None:
        return
    try:
        from perf.evidence import picture

        picture.draw(table, out / "evidence.png")
    except Exception as error:
        _to_stderr(f"no chart: {one_line(error)}")


def _to_stderr(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be there to read it
        print(text, file=sys.stderr, flush=True)
