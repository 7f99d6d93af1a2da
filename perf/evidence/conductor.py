"""Runs the steps one after the other, each in a process with a share of the time, and keeps what they find.

A step's share of the time left is what its seconds are of those of all steps left: what one does not use,
the later ones have. A process that says nothing for as long as the step's patience is killed with all that it
started, and so is one whose share is over; one that crashes or loses the GPU is started anew for the items
that it did not come to. Results are written after each record.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from perf.evidence.agenda import Step
from perf.evidence.stage import Record
from perf.evidence.worker import AGAIN, LOST

ROOT = Path(__file__).resolve().parents[2]
_SECONDS_TO_START, _SECONDS_TO_END, _SECONDS_TO_DIE = 60, 15, 3
_REHEARSED_PATIENCE = 5
"""How many times slower the interpreter may be, on a CPU that does other work too."""
_SECONDS_BETWEEN_WRITES, _SECONDS_BETWEEN_LINES = 1.0, 10.0
DONE, ENDED, NOT_REACHED = "done", "its time ended", "not reached"

Say = Callable[[str], None]


class Conductor:
    """The run: its clock, its steps, and the results so far, which ``results`` has as they are written."""

    def __init__(
        self,
        steps: Sequence[Step],
        seconds: float,
        out: Path,
        rehearse: bool,
        say: Say,
        start: float | None = None,
    ) -> None:
        """``start``, on the clock of ``time.monotonic``, is when the ``seconds`` began; None for now."""
        self._steps, self._out, self._rehearse, self._print = steps, out, rehearse, say
        self._start = time.monotonic() if start is None else start
        self._end = self._start + seconds - reserve(seconds)
        self._written = self._said = 0.0
        self._earlier: list[Record] = []
        """What an earlier try of the current item found."""
        self.results: Record = {"seconds": seconds, "rehearsal": rehearse, "machine": {}, "steps": {}}
        for step in steps:
            self.results["steps"][step.name] = {
                "what": step.what,
                "status": NOT_REACHED,
                "seconds": 0.0,
                "share": 0.0,
                "left": step.items(rehearse),
                "planned": None,
                "records": [],
            }

    def run(self) -> None:
        """Run all steps, then go on with those that were cut, as long as there is time."""
        with (self._out / "evidence.log").open("w") as log:
            self._round(self._steps, log)
            self._round([step for step in self._steps if self.results["steps"][step.name]["left"]], log)
        self._write()

    def _round(self, steps: Sequence[Step], log: TextIO) -> None:
        """Run steps; the first of all must find a machine, or the others are not tried."""
        for number, step in enumerate(steps, start=1):
            is_first = step is self._steps[0]
            left = self._end - time.monotonic()
            share = left * step.seconds / sum(other.seconds for other in steps[number - 1 :])
            if is_first:  # on a cold machine imports take long
                share = max(share, left / 3)
            found = self.results["steps"][step.name]
            if share <= 1 or not (is_first or self.results["machine"]):
                continue
            found["share"] = round(share, 1)
            self._say(f"[{number}/{len(steps)}] {step.name}: {step.what}, at most {share:.0f} s")
            began = time.monotonic()
            try:
                self._step(step, began + share, log)
            except BaseException:
                found["status"] = "interrupted"
                raise
            finally:
                found["seconds"] = round(found["seconds"] + time.monotonic() - began, 1)
                self._write()
            self._say(f"    {found['status']} after {time.monotonic() - began:.0f} s: {outline(found)}")

    def _step(self, step: Step, end: float, log: TextIO) -> None:
        """Run a step's process, and another for the items left where one is lost with an item."""
        found = self.results["steps"][step.name]
        # Of an earlier round, too.
        troubles = [t for t in found["status"].split("; ") if t not in (DONE, ENDED, NOT_REACHED)]
        while found["left"]:
            before = len(found["left"])
            trouble = self._process(step, end, log)
            if trouble:
                troubles.append(trouble)
            if trouble == ENDED or time.monotonic() >= end:
                break
            if len(found["left"]) == before:  # it did not even begin
                break
        found["status"] = "; ".join(dict.fromkeys(troubles)) or DONE

    def _process(self, step: Step, end: float, log: TextIO) -> str:
        """One process of a step; returns what became of it in words, nothing if all went well."""
        found = self.results["steps"][step.name]
        seconds = end - time.monotonic()
        command = [sys.executable, "-m", "perf.evidence.worker", step.name, "--out", str(self._out)]
        command += ["--seconds", f"{seconds:.1f}", *["--rehearse"] * self._rehearse]
        log.write(f"\n== {step.name}: {', '.join(found['left'])}\n")
        log.flush()
        process = subprocess.Popen(
            [*command, "--items", *found["left"]],
            cwd=ROOT,
            env=self._environment(step),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # so that what it starts can be killed with it
        )
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reader.start()
        patience = step.patience * (_REHEARSED_PATIENCE if self._rehearse else 1)
        current, allowed = found["left"][0], max(patience, _SECONDS_TO_START)
        try:
            while True:
                wait = min(allowed, end - time.monotonic())
                try:
                    line = lines.get(timeout=max(wait, 0))
                except queue.Empty:
                    if wait >= allowed:
                        return f"{current}: stopped, no word for {allowed:.0f} s"
                    if not found["left"] and len(found["records"]) == found["planned"]:
                        return ""  # all it was to find; it had but to end
                    found["left"] = list(dict.fromkeys([current, *found["left"]]))  # to be begun again
                    return ENDED
                if line is None:
                    break
                current, allowed = self._take(step, line) or current, patience
            code = process.wait(timeout=_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            return f"{current}: did not end after its last word"
        finally:
            _kill(process)
            again, others = _parted(found["records"], current)
            if len(again) < len(self._earlier):
                found["records"] = others + self._earlier
            self._earlier = []
        if code == LOST:
            return f"{current}: the GPU answered no more"
        return "" if code in (0, AGAIN) else f"{current}: crashed ({_reason(code)})"

    def _environment(self, step: Step) -> dict[str, str]:
        """Of a rehearsal, kernels are interpreted, but where they are compiled."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        environment.pop("TRITON_INTERPRET", None)
        if self._rehearse and step.name != "compile":
            environment["TRITON_INTERPRET"] = "1"
        return environment

    def _take(self, step: Step, line: str) -> str:
        """Keep what a line of a process says; returns the item that it begins, if so."""
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            return ""
        found, item = self.results["steps"][step.name], message["item"]
        if message.get("state") == "begun" and item in found["left"]:
            found["left"].remove(item)
            self._earlier, found["records"] = _parted(found["records"], item)
            return item
        if "record" in message:
            record = message["record"]
            self.results["machine"] |= record.pop("facts", {})
            if "planned" in record:
                found["planned"] = record["planned"]
            else:
                found["records"].append({"item": item, **record})
            now = time.monotonic()
            if step.name == "machine" or now - self._written > _SECONDS_BETWEEN_WRITES:
                self._write()
            if now - self._said > _SECONDS_BETWEEN_LINES:
                self._say(f"    {item}: {outline(found)} so far")
        return ""

    def _say(self, text: str) -> None:
        self._print(text)
        self._said = time.monotonic()

    def _write(self) -> None:
        """Replace the file as a whole: whoever stops this in the midst finds one that can be read."""
        self.results["seconds_used"] = round(time.monotonic() - self._start, 1)
        path = self._out / "evidence.json"
        text = json.dumps(self.results, indent=1, default=str)
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").replace(path)
        self._written = time.monotonic()


def _parted(records: Sequence[Record], item: str) -> tuple[list[Record], list[Record]]:
    """The records of an item, and the others."""
    own = [record for record in records if record["item"] == item]
    return own, [record for record in records if record["item"] != item]


def outline(found: Record) -> str:
    """What a step found, in a few words."""
    records, planned = found["records"], found["planned"]
    wrong = sum(not record["ok"] for record in records)
    of = f" of {planned}" if planned else ""
    noun = "result" if len(records) == 1 and not planned else "results"
    left = f", not reached: {', '.join(found['left'])}" if found["left"] else ""
    return f"{len(records)}{of} {noun}" + (f", {wrong} WRONG" if wrong else "") + left


def reserve(seconds: float) -> float:
    """What of the time is kept for the summary and the chart."""
    return min(10.0, seconds / 10)


def _read(pipe: TextIO, lines: queue.Queue[str | None]) -> None:
    for line in pipe:
        lines.put(line)
    lines.put(None)


def _kill(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_SECONDS_TO_DIE)


def _reason(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
