"""Runs the commands of steps, each in a process of its own, until the step's share of the time is over.

A share is in proportion to the step's seconds, so time that a step does not use goes to later ones. Commands
that were ended, or not reached, are run again at the end, if time is left.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TextIO

from perf.evidence.steps import Record, Step
from perf.files import FAILED
from perf.measuring.suite import one_line

ROOT = Path(__file__).resolve().parents[2]
DONE, ENDED, NOT_REACHED = "done", "ended", "not reached"
_SECONDS_TO_DIE = 3.0  # a process that a driver does not let go may never end
_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "TRITON_INTERPRET": "0",
    "STN_TRITON_AUTOTUNE": "0",  # block sizes are searched by the step of that name alone
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_ADDOPTS": "",
    "COLUMNS": "300",  # pytest would cut off the names of failed tests
}


class Runner:
    """The run: its clock, its steps, and ``results``, which evidence.json has as they come."""

    def __init__(self, steps: Sequence[Step], seconds: float, out: Path, say: Callable[[str], None]) -> None:
        self._steps, self._out, self._say = steps, out, say
        self._start = time.monotonic()
        self._end = self._start + seconds - min(10.0, seconds / 10)  # time for the summary and the picture
        self.results: Record = {"seconds": seconds, "seconds_used": 0.0, "machine": {}, "steps": {}}
        for step in steps:
            new = {name: {"command": [*one], "status": NOT_REACHED} for name, one in step.commands.items()}
            self.results["steps"][step.name] = new

    def run(self) -> None:
        """Run all steps; the first must find a machine, or the others are not tried."""
        for _ in range(2):
            steps = [step for step in self._steps if left(self.results["steps"][step.name])]
            for number, step in enumerate(steps):
                time_left = self._end - time.monotonic()
                share = time_left * step.seconds / sum(other.seconds for other in steps[number:])
                if share > 1 and (step is self._steps[0] or self.results["machine"]):
                    with (self._out / "evidence.log").open("a") as log:
                        self._step(step, share, log)

    def _step(self, step: Step, seconds: float, log: TextIO) -> None:
        """Run the commands of a step that are left, and say how they ended."""
        self._say(f"{step.name}: {step.what}, at most {seconds:.0f} s")
        records, end = self.results["steps"][step.name], time.monotonic() + seconds
        waiting, running = left(records), {}
        workers = self.results["machine"].get("workers", 1) if step.side_by_side else 1
        try:
            while (waiting or running) and time.monotonic() < end:
                while waiting and len(running) < workers:
                    name = waiting.pop(0)
                    running[name] = self._begin(f"{step.name}, {name}", records[name], log)
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    kill([running[name]])  # what it left running
                    self._keep(step, records[name], running.pop(name).returncode, log)
                time.sleep(0.05)
        finally:  # of the time, or of an interrupted run
            kill(running.values())
            for name in running:
                self._keep(step, records[name], None, log)
        statuses = [record["status"] for record in records.values()]
        counts = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)]
        self._say(f"    {', '.join(counts)}; {self.results['seconds_used']:.0f} s used")

    def _begin(self, name: str, record: Record, log: TextIO) -> subprocess.Popen:
        """Start a command as the leader of a session, so that it is killed with all that it starts."""
        print(f"\n== {name}: {' '.join(record['command'])}", file=log, flush=True)
        record |= {"began": time.monotonic(), "printed": str(self._out / f"{name}.txt")}
        # Into a file, because a process that does not end would keep a pipe open.
        with open(record["printed"], "w") as file:
            return subprocess.Popen(
                [sys.executable, *record["command"]],
                start_new_session=True,
                cwd=ROOT,
                env={**os.environ, **_ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=log,
            )

    def _keep(self, step: Step, record: Record, code: int | None, log: TextIO) -> None:
        """Complete the record of a command; its exit code is None if it was ended."""
        printed = Path(record["printed"])
        record |= {"exit": code, "printed": printed.read_text(errors="replace")}
        printed.unlink()
        record["seconds"] = round(time.monotonic() - record.pop("began"), 1)
        try:
            record["problems"] = step.read(record, self._out)
        except Exception as error:  # output that nobody thought of
            record["problems"] = [f"cannot be read: {one_line(error)}"]
        record["status"] = ENDED if code is None else FAILED if record["problems"] else DONE
        if record["problems"]:
            print(record["printed"], file=log, flush=True)
        self.results["machine"] |= record.get("facts", {})
        self.results["seconds_used"] = round(time.monotonic() - self._start, 1)
        # Replaced as a whole, so that it can be read at any time.
        new = self._out / "evidence.json.new"
        new.write_text(json.dumps(self.results, indent=1))
        new.replace(self._out / "evidence.json")


def left(records: Record) -> list[str]:
    """The commands of a step that have no result; those that were ended come last, because they may hang."""
    return [
        name for one in (NOT_REACHED, ENDED) for name, record in records.items() if record["status"] == one
    ]


def kill(processes: Collection[subprocess.Popen]) -> None:
    """End processes and everything that they started; leave those behind that do not end."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    end = time.monotonic() + _SECONDS_TO_DIE
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(end - time.monotonic(), 0))
