"""The process of one step of `python -m perf evidence`: it writes JSON lines to standard output.

Everything that libraries print goes to standard error, which is the log.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch

from perf.evidence.stage import Stage
from perf.measuring import stopwatch
from perf.measuring.suite import one_line


def main() -> None:
    """Do the items of a step; write a line when one begins, for each of its records, and when it is done."""
    task = json.loads(sys.argv[1])
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    end = time.monotonic() + task["seconds"]
    stage = Stage(Path(task["out"]), end, task["rehearse"], task["facts"])
    module, _, name = task["function"].partition(":")
    function = getattr(importlib.import_module(module), name)

    def put(**message: object) -> None:
        lines.write(json.dumps(message, default=str) + "\n")

    for item in task["items"]:
        put(begun=item)
        try:
            for record in function(item, stage):
                put(item=item, **record)
        except Exception as error:  # whatever it is, the other items go on
            traceback.print_exc()
            put(item=item, ok=False, what=item, problem=one_line(error))
            if torch.cuda.is_initialized() and not stopwatch.is_alive(stage.device):
                os._exit(1)  # another process goes on
        put(done=item)
    sys.stderr.flush()
    os._exit(0)  # the usual end of a process that used a GPU may take seconds


if __name__ == "__main__":
    main()
