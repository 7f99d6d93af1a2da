"""``python -m perf evidence``: what a GPU can show in a few minutes, the most telling first.

Each command of a step has a process of its own, and this one uses no GPU: a crash, a hang or the end of the
time costs only the results that were not yet found.
"""

import argparse
import functools
import json
import signal
import sys
import time
from pathlib import Path

import torch

from perf import EXIT_FAILED, EXIT_OK, UsageError, chosen
from perf.evidence import outcome, steps
from perf.evidence.runner import Runner
from perf.plot import make_directory


def main(args: argparse.Namespace) -> int:
    """Run the steps, print the summary, and return the exit code."""
    if not args.minutes > 0:
        raise UsageError(f"--minutes: expected a number above 0, got {args.minutes:g}")
    name = "rehearsal" if args.rehearse else "evidence"
    out = (args.out or Path("perf-results") / time.strftime(f"{name}-%Y-%m-%d-%H%M%S")).resolve()
    first, *others = steps.steps(out, args.rehearse)
    names = chosen("--only", args.only, [step.name for step in (first, *others)])
    todo = [first, *(step for step in others if step.name in names)]
    if args.plan:
        total = sum(step.seconds for step in todo)
        for step in todo:
            seconds = 60 * args.minutes * step.seconds / total
            print(f"{step.name:12}{seconds:4.0f} s  {step.what}: {'; '.join(step.commands)}")
        print("Time that a step does not need goes to those after it, at the end to those that were cut.")
        return EXIT_OK
    if not args.rehearse and not torch.cuda.is_available():
        expected = "expected one, or --rehearse (a part of it on this CPU), or --plan (what it does)"
        raise UsageError(f"torch {torch.__version__} finds no GPU here; {expected}")
    make_directory(out)
    if any(out.iterdir()):
        raise UsageError(f"--out: {out} has files; expected an empty directory, or none yet")
    say = functools.partial(print, file=sys.stderr, flush=True)
    runner = Runner(todo, 60 * args.minutes, out, say)
    # A lost terminal and a request to end are handled as Ctrl-C, which ends the commands' processes too.
    # `nohup` ignores the first, and this goes on.
    wanted = [one for one in (signal.SIGHUP, signal.SIGTERM) if signal.getsignal(one) != signal.SIG_IGN]
    before = {one: signal.signal(one, signal.default_int_handler) for one in wanted}
    try:
        runner.run()
    finally:  # an interrupted run has a summary too
        text = outcome.summarize(runner.results, out)
        (out / "summary.txt").write_text(text + "\n")
        print(json.dumps(runner.results) if args.json else f"\n{text}", flush=True)
        say(f"\nin {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
        for one, handler in before.items():
            signal.signal(one, handler)
    return EXIT_FAILED if outcome.failures(runner.results) else EXIT_OK
