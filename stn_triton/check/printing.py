"""Output of the check: the table, its head and foot, JSON, and progress."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stn_triton.check.engine import KERNELS, Engine
from stn_triton.check.judge import Finding
from stn_triton.check.rows import Row
from stn_triton.environment import columns, wrapped

_LAYOUT = "{:28} {:9} {:>6} {:>12} {:>9}  {}"
_SECONDS_BETWEEN_LINES = 10
# Failures printed with their arguments; often many rows fail for one reason.
_SHOWN_WHOLE = 3


class Line(NamedTuple):
    """A line of the table."""

    section: str
    name: str
    group: str
    """output, gradients or empty."""
    cases: int
    failed: int
    worst: Finding | None
    skipped: str | None = None
    """Reason for skipping."""

    @classmethod
    def of(cls, row: Row, group: str, findings: Sequence[Finding]) -> Line:
        """Summarise the findings of a group; each case counts once per gradient."""
        failed = sum(not finding.passed() for finding in findings)
        return cls(row.section, row.name, group, len(findings), failed, max(findings, key=Finding.share))

    @property
    def status(self) -> str:
        """PASS, FAIL or SKIP."""
        if self.worst is None:
            return "SKIP"
        return "FAIL" if self.failed else "PASS"

    def title(self) -> str:
        """Name of the row and its group."""
        return f"{self.name}: {self.group}" if self.group else self.name


def group(part: str) -> str:
    """Group that a tensor belongs to."""
    return "output" if part == "output" else "gradients" if part.startswith("grad_") else ""


class Table:
    """Printer of lines as they come, with a title before each section."""

    def __init__(self) -> None:
        self._section = ""

    def add(self, lines: Sequence[Line]) -> None:
        """Print the lines of a row."""
        for line in lines:
            if line.section != self._section:
                self._section = line.section
                print(f"\n{line.section}")
                print(_LAYOUT.format("", "", "checks", "worst error", "allowed", "").rstrip())
            if line.worst is None:
                print(f"{_LAYOUT.format(line.name, '', 0, '', '', 'SKIP')}\n    {line.skipped}", flush=True)
                continue
            numbers = [f"{number:.1e}" for number in (line.worst.error, line.worst.allowed)]
            print(_LAYOUT.format(line.name, line.group, line.cases, *numbers, line.status), flush=True)


def head(engine: Engine, facts: Mapping[str, str]) -> str:
    """Describe the environment and the engine."""
    width = columns()
    lines = [wrapped(f"{key:11} {value}", 12, width) for key, value in facts.items() if value]
    return "\n".join([*lines, "", wrapped(engine.describe(), 0, width)])


def foot(lines: Sequence[Line], engine: Engine, seconds: float, again: str) -> str:
    """The verdict; for failures also how to reproduce them and what to do."""
    failed = [line for line in lines if line.status == "FAIL"]
    checks = f"{sum(line.cases for line in lines):,} checks in {seconds:.0f} s"
    skipped = sum(line.status == "SKIP" for line in lines)
    rest = f", {skipped} skipped" if skipped else ""
    if not failed:
        return f"\nPASS: {len(lines) - skipped} rows{rest}, {checks}"
    text = [f"\nFAIL: {len(failed)} of {len(lines)} rows{rest}, {checks}"]
    text += [_failure(line, again, i < _SHOWN_WHOLE) for i, line in enumerate(failed)]
    return "\n\n".join([*text, _advice(engine, again)])


def _failure(line: Line, again: str, is_whole: bool) -> str:
    worst = line.worst
    lines = [f"{line.title()}: {line.failed} of {line.cases} checks; the worst:"]
    lines.append(worst.text)
    if math.isfinite(worst.error) and worst.error:
        lines[-1] += f": off by {worst.error:.2e}, allowed {worst.allowed:.2e}"
    width = columns()
    call = worst.call if is_whole else ()
    text = [lines[0], *(wrapped(f"  {line}", 6, width) for line in [*lines[1:], *call])]
    # Never wrapped, so that it can be copied.
    return "\n".join([*text, f"  again: {again} --only {shlex.quote(line.name)}"])


def _advice(engine: Engine, again: str) -> str:
    """Steps to find the cause, some with a command."""
    steps = [
        ("Run it again. If other rows fail, or none, the hardware or its driver is at fault.", ""),
        ("Run it with another PyTorch and Triton. If that passes, these versions are at fault.", ""),
        ("Report it, with the output of this command:", f"{again} --json"),
    ]
    if engine.name == KERNELS:
        step = "Run it on the CPU. If that fails too, the kernels are not at fault."
        steps.insert(1, (step, f"{_without_device(again)} --device cpu"))
    text = ["Do not rely on the operator's results on this machine. To find out why:"]
    for i, (step, command) in enumerate(steps, 1):
        text.append(wrapped(f"  {i}. {step}", 5, columns()))
        text += [f"       {command}"] if command else []
    return "\n".join(text)


def _without_device(again: str) -> str:
    return again.partition(" --device")[0]


def as_json(
    lines: Sequence[Line], engine: Engine, facts: Mapping[str, str], quick: bool, seconds: float
) -> dict[str, object]:
    """All results as JSON. Errors that are not finite are null, and ``text`` describes them."""
    return {
        "passed": not any(line.status == "FAIL" for line in lines),
        "quick": quick,
        "device": str(engine.device),
        "engine": engine.name,
        "seconds": round(seconds, 1),
        "environment": dict(facts),
        "rows": [_row_as_json(line) for line in lines],
    }


def _row_as_json(line: Line) -> dict[str, object]:
    known = {"section": line.section, "name": line.name, "of": line.group, "status": line.status}
    worst = line.worst
    if worst is None:
        return {**known, "reason": line.skipped}
    numbers = {"error": worst.error, "allowed": worst.allowed, "pytorch_error": worst.pair_error}
    finite = {k: v if v is not None and math.isfinite(v) else None for k, v in numbers.items()}
    counts = {"checks": line.cases, "failed": line.failed}
    return {**known, **counts, **finite, "text": worst.text, "call": list(worst.call)}


class Progress:
    """Progress on stderr: one changing line in a terminal, elsewhere a line every ten seconds."""

    def __init__(self, rows: int) -> None:
        self._rows, self._row, self._name, self._cases = rows, 0, "", 0
        self._is_terminal = sys.stderr is not None and sys.stderr.isatty()  # None if stderr was closed
        self._began = self._told = time.monotonic()

    def begin(self, name: str) -> None:
        """Start a row."""
        self._row, self._name, self._cases = self._row + 1, name, -1
        self.step()

    def step(self) -> None:
        """Count a finished case of the row."""
        self._cases += 1
        now = time.monotonic()
        if now - self._told < (0.1 if self._is_terminal else _SECONDS_BETWEEN_LINES):
            return
        self._told = now
        text = f"{self._row} of {self._rows}: {self._name}, {self._cases} cases, {now - self._began:.0f} s"
        if self._is_terminal:
            print(f"\r\x1b[K{text[: columns() - 1]}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Finish a row and clear its progress."""
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
