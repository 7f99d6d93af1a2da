"""The process of one step of `python -m perf evidence`: what it finds goes to standard output as JSON lines.

Whatever libraries print goes to standard error, which is the log. An item that raises an exception costs
itself alone; if it spoilt the process, the conductor starts another one for the items after it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TextIO

AGAIN, LOST = 3, 4
"""Exit codes: this process cannot go on after what it did; the GPU answers no more in it."""


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
    # What searches for block sizes is the step that says so, whatever the user's environment asks for.
    os.environ["STN_TRITON_AUTOTUNE"] = "0"

    from perf.evidence.agenda import FAULTS, STEPS
    from perf.evidence.stage import Stage, read_facts

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

    from perf.evidence.crew import SpoiltError
    from perf.measuring import stopwatch
    from perf.measuring.suite import one_line

    _put(lines, {"item": item, "state": "begun"})
    try:
        for record in run(item, stage):
            _put(lines, {"item": item, "record": record})
    except Exception as error:  # whatever it is, the other items go on
        traceback.print_exception(error)
        _put(lines, {"item": item, "record": {"ok": False, "problem": one_line(error)}})
        if torch.cuda.is_initialized() and not stopwatch.is_alive(stage.device):
            return LOST
        return AGAIN if isinstance(error, SpoiltError) else 0
    return 0


def _put(lines: TextIO, content: dict) -> None:
    lines.write(json.dumps(_plain(content), allow_nan=False) + "\n")


def _plain(value: object) -> object:
    """As JSON has it: numbers of NumPy as Python's, and what is no finite number as text."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


if __name__ == "__main__":
    sys.exit(main())
