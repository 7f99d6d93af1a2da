"""Steps for the tests of `perf.evidence.runner`: functions that their processes import."""

import os
import time


def crash(item, stage):
    """Find a result of each item, and crash in the middle of the item named ``crash``."""
    yield {"ok": True, "what": f"first of {item}", "process": os.getpid(), "facts": {"device": "none"}}
    if item == "crash":
        os.abort()
    yield {"ok": True, "what": f"second of {item}"}


def hang(item, stage):
    """Find a result of each item, and hang at the item named ``hang``, with a process that hangs too."""
    yield {"ok": True, "what": f"first of {item}"}
    while item == "hang":
        time.sleep(1)


def fail(item, stage):
    """Raise at the item named ``fail``."""
    if item == "fail":
        raise ValueError("not this one")
    yield {"ok": True, "what": item, "process": os.getpid()}
