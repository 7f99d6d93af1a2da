"""Runs steps one after the other, each in a process with a share of the time, and keeps their results.

A step's share of the time left is in proportion to its seconds, so time that a step does not use goes to
later ones. A process whose share is over is killed with all processes that it started. One that crashes is
started again for the items after the crash. Steps that were cut go on at the end, if time is left.

``python -m perf.evidence.runner TASK`` is such a process. It writes JSON lines to standard output. Everything
that libraries print goes to standard error, which is the log.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import torch

from perf.evidence.stage import Record, Stage, Step
from perf.measuring import stopwatch
from perf.measuring.suite import one_line

ROOT = Path(__file__).resolve().parents[2]
DONE, ENDED, NOT_REACHED = "done", "its time ended", "not reached"
_SECONDS_TO_DIE = 3.0  # a process that a driver does not let go may never end


class Runner:
    """The run: its clock, its steps, and ``results``, which evidence.json has as they come."""

    def __init__(
        self, steps: Sequence[Step], seconds: float, out: Path, rehearse: bool, say: Callable[[str], None]
    ) -> None:
        self._steps, self._out, self._rehearse, self._say = steps, out, rehearse, say
        self._start = time.monotonic()
        self._end = self._start + seconds - min(10.0, seconds / 10)  # time for the summary and the picture
        self.results: Record = {"seconds": seconds, "rehearsal": rehearse, "machine": {}, "steps": {}}
        for step in steps:
            left = list(step.rehearsed if rehearse else step.items)
            empty = {"seconds": 0.0, "left": left, "crashes": [], "records": []}
            self.results["steps"][step.name] = {"what": step.what, "status": NOT_REACHED, **empty}

    def run(self) -> None:
        """Run all steps, then those that were cut, as long as there is time.

        The first of all must find a machine, or the others are not tried.
        """
        with (self._out / "evidence.log").open("w") as log:
            self._write()
            for _ in range(2):
                steps = [step for step in self._steps if self.results["steps"][step.name]["left"]]
                for number, step in enumerate(steps):
                    left = self._end - time.monotonic()
                    share = left * step.seconds / sum(other.seconds for other in steps[number:])
                    if share > 1 and (step is self._steps[0] or self.results["machine"]):
                        self._step(step, share, log)

    def _step(self, step: Step, seconds: float, log: TextIO) -> None:
        found = self.results["steps"][step.name]
        self._say(f"{step.name}: {step.what}, at most {seconds:.0f} s")
        began = time.monotonic()
        found["status"] = "interrupted"
        try:
            while found["left"] and self._process(step, began + seconds, log):
                pass
            found["status"] = ENDED if found["left"] else DONE
        finally:
            found["seconds"] = round(found["seconds"] + time.monotonic() - began, 1)
            self._write()
        wrong = sum(not record["ok"] for record in found["records"])
        counts = [f"{len(found['records'])} results", *[f"{wrong} WRONG"] * bool(wrong), *found["crashes"]]
        self._say(f"    {found['status']} after {found['seconds']:.0f} s: {', '.join(counts)}")

    def _process(self, step: Step, end: float, log: TextIO) -> bool:
        """Run one process of a step; returns whether another can go on with the items left."""
        found = self.results["steps"][step.name]
        seconds = end - time.monotonic()
        task = {"function": step.function, "items": found["left"], "facts": self.results["machine"]}
        task |= {"out": str(self._out), "seconds": seconds, "rehearse": self._rehearse}
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TRITON_INTERPRET": str(int(self._rehearse))}
        environment["STN_TRITON_AUTOTUNE"] = "0"  # block sizes are searched by the step of that name alone
        print(f"\n== {step.name}: {', '.join(found['left'])}", file=log, flush=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "perf.evidence.runner", json.dumps(task)],
            start_new_session=True,  # so that the processes that it starts can be killed with it
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        item = None  # the item that has begun and is not done
        try:
            for line in _lines(process, end):
                with contextlib.suppress(json.JSONDecodeError):  # the process was killed as it wrote
                    item = self._take(found, json.loads(line), item)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0))
        finally:
            _kill(process)
        code = process.returncode
        if code == 0:
            return False
        if item:
            found["left"].remove(item)
        if code is None or time.monotonic() >= end:
            found["left"] += [item] if item else []  # the last, because it may hang
            return False
        reason = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        found["crashes"].append(f"{item or 'no item'}: crashed ({reason})")
        return item is not None

    def _take(self, found: Record, message: Record, item: str | None) -> str | None:
        """Keep a message of a step's process; returns the item that it works on after it."""
        if "begun" in message:
            return message["begun"]
        if "done" in message:
            found["left"].remove(item)
            return None
        self.results["machine"] |= message.pop("facts", {})
        # An item that was cut is done again, and finds the same results again.
        key = [message["item"], message["what"], message["ok"]]
        others = [one for one in found["records"] if [one["item"], one["what"], one["ok"]] != key]
        found["records"] = [*others, message]
        self._write()
        return item

    def _write(self) -> None:
        """Replace the file as a whole, so that it can be read at any time."""
        self.results["seconds_used"] = round(time.monotonic() - self._start, 1)
        new = self._out / "evidence.json.new"
        new.write_text(json.dumps(self.results, indent=1))
        new.replace(self._out / "evidence.json")


def _lines(process: subprocess.Popen, end: float) -> Iterator[str]:
    """Yield what a process prints; at ``end``, on the clock of ``time.monotonic``, kill it.

    A thread reads, because a process that is stuck in a driver may keep its output open after it was killed.
    """
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    with contextlib.suppress(queue.Empty):
        yield from iter(lambda: lines.get(timeout=max(end - time.monotonic(), 0)), None)
        return
    _kill(process)
    with contextlib.suppress(queue.Empty):  # the last lines before its end
        yield from iter(lambda: lines.get(timeout=_SECONDS_TO_DIE), None)


def _kill(process: subprocess.Popen) -> None:
    """End a process and everything that it started; leave it behind if it does not end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_SECONDS_TO_DIE)


def work(task: Record) -> None:
    """Do the items of a step; write a line when one begins, for each of its records, and when it is done."""
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
    work(json.loads(sys.argv[1]))
