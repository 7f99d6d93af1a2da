"""A step for the tests of `perf.evidence.runner`: a function that its processes import."""

import os
import time


def act(item, stage):
    """Find two results of an item. After the first, ``fail``, ``crash`` and ``hang`` do as they are named."""
    yield {"ok": True, "what": f"first of {item}", "facts": {"device": "none"}}
    if item == "fail":
        raise ValueError("not this one")
    if item == "crash":
        os.abort()
    while item == "hang":
        time.sleep(1)
    yield {"ok": True, "what": f"second of {item}"}
