"""Facts about the machine that a measurement is worth nothing without.

``python -m perf.setting DEVICE`` prints them as JSON, with the number of processes that can share the device.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

import stn_triton
from perf import UsageError
from stn_triton.environment import UNKNOWN, cpu_model, driver, version

_GPU_BYTES_PER_PROCESS = 2**31  # for its context and small tensors, generously
_ROOT = Path(__file__).resolve().parents[1]


def facts(device: torch.device) -> dict[str, str | int]:
    """The columns of each row of a CSV that name hardware, driver, versions, commit and date."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_model(),
        "device_type": device.type,
        "driver": driver() if on_gpu else "",
        "toolkit": f"{torch.version.cuda or torch.version.hip}" if on_gpu else "",
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "stn_triton": stn_triton.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def check_not_interpreted(reason: str) -> None:
    """Raise UsageError, with the reason, if the environment selects Triton's interpreter."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise UsageError(f"TRITON_INTERPRET is set: {reason}; unset it")


def load() -> str:
    """Return a warning if other programs keep this machine's CPU busy, else an empty text."""
    found, cores = os.getloadavg()[0], os.cpu_count() or 1
    if found <= 0.5 * cores:
        return ""
    return f"load {found:.1f} on {cores} cores: other programs run here, so times on this CPU mean little"


def summary(facts: dict[str, str | int]) -> str:
    """The facts in a line, for a chart's subtitle."""
    hardware = f"CPU {facts['device']}, {facts['threads']} threads"
    if facts["device_type"] == "cuda":
        hardware = f"{facts['device']}, driver {facts['driver']}"
    versions = f"torch {facts['torch']}, triton {facts['triton']}, python {facts['python']}"
    return f"{hardware} · {versions} · commit {facts['commit']} · {str(facts['date'])[:10]}"


def commit() -> str:
    """The short hash of the checkout, with ``+dirty`` if a file in it is changed; ``unknown`` outside one."""
    # Without .git here an installed copy may lie in another project's checkout, whose commit says nothing.
    command = ("git", "describe", "--always", "--exclude=*", "--abbrev=10", "--dirty=+dirty")
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return done.stdout.strip() if (_ROOT / ".git").exists() else UNKNOWN


if __name__ == "__main__":
    device, workers = torch.device(sys.argv[1]), len(os.sched_getaffinity(0))
    if device.type == "cuda":
        workers = max(min(workers, torch.cuda.mem_get_info(device)[0] // _GPU_BYTES_PER_PROCESS), 1)
    print(json.dumps(facts(device) | {"workers": workers}))
