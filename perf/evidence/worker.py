"""The process of one step of `python -m perf evidence`: what it finds goes to standard output as JSON lines.

Whatever libraries print goes to standard error, which is the log. An item that raises an exception costs
itself alone: the conductor starts another process for the items after it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TextIO

AGAIN, LOST = 3, 4
"""Exit codes: after an exception, which may have spoilt this process; where the GPU answers no more."""


def main() -> int:
    """Do the items of a step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("step")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--items", nargs="+", required=True)
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # Block sizes are the tables' and the defaults': what tunes here is the step that says so.
    os.environ.setdefault("STN_TRITON_AUTOTUNE", "0")

    from perf.evidence.stage import Stage, read_facts
    from perf.evidence.steps import FAULTS, STEPS

    step = next(step for step in (*STEPS, *FAULTS) if step.name == args.step)
    stage = Stage(args.out, end, args.rehearse, read_facts(args.out))
    module, _, function = step.runs.partition(":")
    run = getattr(importlib.import_module(f"perf.evidence.{module}"), function)
    for item in args.items:
        code = _do(item, run, stage, lines)
        if code:
            return code
    return 0


def _do(item: str, run, stage, lines: TextIO) -> int:
    """Do one item; returns an exit code, 0 if the process can go on."""
    import torch

    from perf.measuring import measure
    from perf.measuring.suite import one_line

    _put(lines, {"item": item, "state": "begun"})
    code = 0
    try:
        for record in run(item, stage):
            _put(lines, {"item": item, "record": record})
    except Exception as error:  # whatever it is, the other items go on
        _put(lines, {"item": item, "record": {"ok": False, "problem": one_line(error)}})
        is_alive = not torch.cuda.is_initialized() or measure.is_alive(stage.device)
        code = AGAIN if is_alive else LOST
    _put(lines, {"item": item, "state": "done"})
    return code


def _put(lines: TextIO, content: dict) -> None:
    lines.write(json.dumps(content, default=str) + "\n")


if __name__ == "__main__":
    sys.exit(main())
