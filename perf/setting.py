"""Facts about the machine that a measurement is worth nothing without."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

import stn_triton
from stn_triton import environment as machine
from stn_triton.environment import UNKNOWN, cpu_model

_ROOT = Path(__file__).resolve().parents[1]


def facts(device: torch.device) -> dict[str, str | int]:
    """What goes into each row of the CSV: hardware, driver, versions, commit and date."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_model(),
        "device_type": device.type,
        "driver": machine.driver() if on_gpu else "",
        "toolkit": f"{torch.version.cuda or torch.version.hip}" if on_gpu else "",
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": machine.version("triton"),
        "stn_triton": stn_triton.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def busy() -> str:
    """Whether other programs keep this machine's CPU busy, in a line; empty if not, or if nobody knows."""
    try:
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
    except (AttributeError, OSError):
        return ""
    if load <= 0.5 * cores:
        return ""
    return (
        f"load {load:.1f} on {cores} cores: other processes run, or just did; times on this CPU mean little"
    )


def summary(facts: dict[str, str | int]) -> str:
    """The facts in a line, for a chart's subtitle."""
    if facts["device_type"] == "cuda":
        hardware = f"{facts['device']}, driver {facts['driver']}"
    else:
        hardware = f"CPU {facts['device']}, {facts['threads']} threads"
    versions = f"torch {facts['torch']}, triton {facts['triton']}, python {facts['python']}"
    return f"{hardware} · {versions} · commit {facts['commit']} · {str(facts['date'])[:10]}"


def commit() -> str:
    """The short hash of the checkout, with ``+dirty`` if code in it is changed; ``unknown`` outside one."""
    # An installed copy may lie in some other project's checkout, whose commit says nothing.
    if Path(_output("git", "rev-parse", "--show-toplevel") or "/").resolve() != _ROOT:
        return UNKNOWN
    sources = (":(glob)stn_triton/**", ":(glob)perf/**/*.py")
    changed = _output("git", "status", "--porcelain", "--", *sources)
    return _output("git", "rev-parse", "--short=10", "HEAD") + ("+dirty" if changed else "")


def _output(*command: str) -> str:
    """What a command prints, or nothing if it cannot run or fails."""
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
