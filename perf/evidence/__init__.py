"""``python -m perf evidence``: what a GPU can show in a few minutes, the most telling first.

Each step has a process of its own, and this one uses no GPU: a crash, a hang or the end of the time costs
only the results that were not yet found.
"""

from __future__ import annotations

import argparse
import functools
import json
import signal
import sys
import time
from pathlib import Path

from perf import EXIT_FAILED, EXIT_OK, UsageError, chosen


def main(args: argparse.Namespace) -> int:
    """Run the steps, print the summary, and return the exit code."""
    from perf.evidence.stage import STEPS

    if not args.minutes > 0:
        raise UsageError(f"--minutes: expected a number above 0, got {args.minutes:g}")
    names = {STEPS[0].name, *chosen("--only", args.only, [step.name for step in STEPS])}
    steps = [step for step in STEPS if step.name in names and (step.rehearsed or not args.rehearse)]
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
    from perf.plot import make_directory
    from stn_triton import environment

    if not args.rehearse and not torch.cuda.is_available():
        raise UsageError(
            f"torch {torch.__version__} finds no GPU here, expected one; --rehearse plays a part of it on "
            "this CPU, --plan says what it does and how long it takes"
        )
    if args.rehearse and (problem := environment.interpreter_problem()):
        raise UsageError(f"--rehearse: {problem}")
    name = "rehearsal" if args.rehearse else "evidence"
    out = (args.out or Path("perf-results") / time.strftime(f"{name}-%Y-%m-%d-%H%M%S")).resolve()
    make_directory(out)
    if any(out.iterdir()):
        raise UsageError(f"--out: {out} has files; expected an empty directory, or none yet")
    say = functools.partial(print, file=sys.stderr, flush=True)
    runner = Runner(steps, 60 * args.minutes, out, args.rehearse, say)
    # A lost terminal and a request to end are handled as Ctrl-C, which ends the steps' processes too.
    before = {one: signal.signal(one, signal.default_int_handler) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        runner.run()
    finally:  # an interrupted run has a summary too
        text = _summarize(runner.results, out)
        print(json.dumps(runner.results) if args.json else f"\n{text}", flush=True)
        say(f"\nin {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
        for one, handler in before.items():
            signal.signal(one, handler)
    return EXIT_FAILED if outcome.failures(runner.results) else EXIT_OK


def _summarize(results: dict, out: Path) -> str:
    """Write the summary and the picture, and return the summary."""
    from perf.evidence import outcome
    from perf.measuring.suite import one_line

    parts = [outcome.verdict(results)]
    try:
        for part in outcome.figures(results, out):
            parts.append(part)
    except Exception as error:  # rows that nobody thought of must not cost the verdict
        parts.append(f"not shown: {one_line(error)}")
    text = "\n\n".join(part for part in [*parts, outcome.cut(results)] if part)
    (out / "summary.txt").write_text(text + "\n")
    return text
