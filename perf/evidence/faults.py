"""What goes wrong in a rehearsal on purpose: a crash and a hang, each between two items that are well."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from perf.evidence.crew import SpoiltError
from perf.evidence.stage import Record, Stage


def crash(item: str, stage: Stage) -> Iterator[Record]:
    """Leave without a word, as after an illegal instruction; then spoil the process in words."""
    if item == "crash":
        os.abort()
    if item == "spoilt":
        yield {"ok": True, "process": os.getpid()}
        raise SpoiltError("nothing that follows in this process means anything")
    yield {"ok": True, "process": os.getpid()}


def hang(item: str, stage: Stage) -> Iterator[Record]:
    """Never end, as a kernel that waits for itself."""
    while item == "hang":
        time.sleep(1)
    yield {"ok": True}
