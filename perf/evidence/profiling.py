"""What Nsight Compute counts of the main kernels, ours and PyTorch's, where ``ncu`` is installed."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from perf.evidence.stage import Record, Stage

METRICS = {
    "gpu__time_duration.sum": "ns",
    "launch__registers_per_thread": "registers",
    "sm__maximum_warps_per_active_cycle_pct": "theoretical occupancy, %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy, %",
    "smsp__inst_executed.sum": "warp instructions",
    "smsp__issue_active.avg.per_cycle_active": "issued per cycle and scheduler",
    "l1tex__throughput.avg.pct_of_peak_sustained_active": "L1, % of peak",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "L2, % of peak",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": "DRAM, % of peak",
    "dram__bytes.sum": "DRAM bytes",
}
"""Names of Nsight Compute's, each in words."""
_KERNELS = "regex:(forward|backward|theta|fill|scatter)_kernel|grid_sampler"
"""Ours, and PyTorch's samplers."""
# Where installers put it, if it is not on the path.
_PLACES = ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")


def run(item: str, stage: Stage) -> Iterator[Record]:
    """A record for each kernel of a forward and backward of a workload."""
    ncu = find()
    if ncu is None:
        yield {"ok": True, "what": item, "problem": "Nsight Compute (ncu) is not installed"}
        return
    command = [ncu, "--csv", "--print-units", "base", "--clock-control", "none", "--target-processes", "all"]
    command += ["--kernel-name", _KERNELS, "--metrics", ",".join(METRICS)]
    command += [sys.executable, "-m", "perf.evidence.profiled", item, *["--rehearse"] * stage.rehearse]
    limit = max(stage.seconds_left() - 1, 1)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        yield {"ok": True, "what": item, "problem": f"ncu did not end within {limit:.0f} s"}
        return
    kernels = read(done.stdout)
    if not kernels:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        reason = lines[-1][:300] if lines else f"exit code {done.returncode}"
        yield {"ok": True, "what": item, "problem": f"ncu counted nothing: {reason}"}
    for kernel in kernels:
        yield {"ok": True, "what": f"{item}: {kernel['kernel']}", **kernel}


def find() -> str | None:
    """The path of ncu, if it is installed."""
    found = shutil.which("ncu") or os.environ.get("NCU")
    if found:
        return found
    for place in _PLACES:
        path = Path(place)
        for match in sorted(Path(path.root).glob(str(path.relative_to(path.root)))):
            return str(match)
    return None


def read(text: str) -> list[Record]:
    """What ``ncu --csv`` prints, whose table has a row per launch and metric, as a record per launch.

    Lines of the program and of ncu's own stand before the table.
    """
    start = text.find('"ID"')
    if start < 0:
        return []
    table = pd.read_csv(io.StringIO(text[start:]), dtype=str)
    needed = {"ID", "Kernel Name", "Metric Name", "Metric Value"}
    if not needed <= set(table.columns):
        return []
    found = []
    for _, rows in table.groupby("ID", sort=False):
        record: Record = {"kernel": rows["Kernel Name"].iloc[0].split("(")[0][:80]}
        for name, value in zip(rows["Metric Name"], rows["Metric Value"], strict=True):
            number = pd.to_numeric(str(value).replace(",", ""), errors="coerce")
            record[METRICS.get(name, name)] = None if pd.isna(number) else float(number)
        nanoseconds, moved = record.get("ns"), record.get("DRAM bytes")
        if nanoseconds and moved:
            record["GB/s"] = round(moved / nanoseconds, 1)
        found.append(record)
    return found
