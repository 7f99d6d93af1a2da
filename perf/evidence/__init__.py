"""``python -m perf evidence``: what a GPU can show in a few minutes, the most telling first.

Each step has a process of its own, and this one uses no GPU: a crash, a hang or the end of the time costs
only the results that were not yet found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from pathlib import Path

from perf import EXIT_FAILED, EXIT_OK, UsageError, chosen


def main(args: argparse.Namespace) -> int:
    """Run the steps, print the summary, and return the exit code."""
    from perf.evidence.agenda import STEPS

    if not args.minutes > 0:
        raise UsageError(f"--minutes: expected a number above 0, got {args.minutes:g}")
    names = chosen("--only", args.only, [step.name for step in STEPS])
    steps = [step for step in STEPS if step.name in names or step is STEPS[0]]
    if args.plan:
        total = sum(step.seconds for step in steps)
        for step in steps:
            seconds = 60 * args.minutes * step.seconds / total
            print(f"{step.name:14}{seconds:4.0f} s  {step.what}: {', '.join(step.items)}")
        print("Time that a step does not need goes to those after it, at the end to those that were cut.")
        return EXIT_OK
    import torch

    from perf.evidence import outcome
    from perf.evidence.runner import Runner
    from stn_triton import environment

    if not args.rehearse and not torch.cuda.is_available():
        raise UsageError(
            f"torch {torch.__version__} finds no GPU here, expected one; --rehearse plays all of it on this "
            "CPU, --plan says what it does and how long it takes"
        )
    if args.rehearse and (problem := environment.interpreter_problem()):
        raise UsageError(f"--rehearse: {problem}")
    out = _directory(args.out, args.rehearse)
    runner = Runner(steps, 60 * args.minutes, out, args.rehearse, _to_stderr)
    # A lost terminal and a request to end are handled as Ctrl-C, which ends the steps' processes too.
    before = {one: signal.signal(one, signal.default_int_handler) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        runner.run()
    finally:
        _summarize(runner.results, out, args.json)
        for one, handler in before.items():
            signal.signal(one, handler)
    return EXIT_FAILED if outcome.failures(runner.results) else EXIT_OK


def _directory(out: Path | None, rehearse: bool) -> Path:
    """Make the directory of the results."""
    from perf.plot import make_directory

    name = "rehearsal" if rehearse else "evidence"
    out = (out or Path("perf-results") / time.strftime(f"{name}-%Y-%m-%d-%H%M%S")).resolve()
    make_directory(out)
    if any(out.iterdir()):
        raise UsageError(f"--out: {out} has files; expected an empty directory, or none yet")
    return out


def _summarize(results: dict, out: Path, as_json: bool) -> None:
    """Print and write the summary, and draw the picture, also of an interrupted run."""
    from perf import files
    from perf.evidence import outcome

    table = None
    with contextlib.suppress(UsageError):  # there are no rows
        table = files.read_speed(out / "speed.csv")
    text = outcome.text(results, table)
    (out / "summary.txt").write_text(text + "\n")
    print(json.dumps(results) if as_json else f"\n{text}", flush=True)
    if table is not None:
        try:
            from perf.evidence import picture

            picture.draw(table, out / "evidence.png")
        except Exception as error:  # rows that cannot be drawn must not cost the results
            _to_stderr(f"no picture: {error}")
    _to_stderr(f"\nin {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def _to_stderr(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(text, file=sys.stderr, flush=True)
