"""The steps of `python -m perf evidence`, in the order of what one needs to know, and their workloads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from perf.measuring.workloads import WORKLOADS

TELLING = (
    *("images-224", "features-64", "digits-28", "volume-160", "crops-7", "features-256-bf16-channels-last"),
    *("images-224-bf16", "features-64-channels-last", "pooled-7", "border-224"),
)
"""The most telling workloads first, because the end of the time cuts the last ones."""
_BACKWARDS = {
    "backward-3": WORKLOADS["images-224"],
    "backward-64": WORKLOADS["features-64"],
    "backward-border": WORKLOADS["border-224"],
    # Large images: with digits of 28 pixels, the host's time would hide the kernels'.
    "backward-1": replace(WORKLOADS["images-224"], shape=(64, 1, 224, 224)),
    "backward-16": replace(WORKLOADS["features-64"], shape=(32, 16, 112, 112)),
    "backward-256-bf16-channels-last": WORKLOADS["features-256-bf16-channels-last"],
}
BACKWARDS = {name: replace(like, name=name) for name, like in _BACKWARDS.items()}
"""Workloads that compare the gather with a scatter: few and many channels, and under ``border``."""


@dataclass(frozen=True)
class Step:
    """A part of the evidence, which runs in a process of its own."""

    name: str
    what: str
    seconds: float  # on an H200 with 16 cores; the time left is shared in proportion
    function: str
    """``module:function``. It is called with each item and the stage, and yields records."""
    items: Sequence[str]
    rehearsed: Sequence[str] = ()  # the items of a rehearsal


_MEASURE, _TIMING = "perf.evidence.measure", "perf.evidence.timing"
_FIRST_CALLS = ("images-224", "digits-28", "volume-160", "features-64")
_FURTHER = [name for name, workload in WORKLOADS.items() if name not in TELLING and not workload.sweep]
# The first has time for the first imports on a machine, which may take long.
STEPS = (
    Step("machine", "hardware, versions, speed of a copy", 40, f"{_MEASURE}:machine", ["facts"], ["facts"]),
    Step("check", "stn_triton check --quick", 140, f"{_MEASURE}:check", ["check"], ["check"]),
    Step("tests", "the tests marked gpu", 50, f"{_MEASURE}:gpu_tests", ["small", "large"], ["small"]),
    Step("compile", "compile what is timed", 25, f"{_MEASURE}:compile_ahead", ["workloads"]),
    Step("speed", "against PyTorch", 70, f"{_TIMING}:speed", TELLING, ["digits-28"]),
    Step("backward", "gather against scatter", 50, f"{_TIMING}:backward", [*BACKWARDS], ["backward-1"]),
    Step("host", "host time of a call", 5, f"{_TIMING}:host", ["overhead"], ["overhead"]),
    Step("first-calls", "seconds of a first call", 40, f"{_TIMING}:first_call", _FIRST_CALLS, ["digits-28"]),
    Step("blocks", "the fastest block sizes", 45, f"{_MEASURE}:block_sizes", TELLING),
    Step("further", "against PyTorch, other workloads", 45, f"{_TIMING}:speed", _FURTHER),
)
