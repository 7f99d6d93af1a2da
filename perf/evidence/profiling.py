"""What Nsight Compute counts of the main kernels, ours and PyTorch's, where ``ncu`` is installed."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from perf.evidence import subjects
from perf.evidence.stage import Record, Stage

MOST = 6
"""Workloads that are profiled, in one process: it takes longer to start than to count."""
LEAST_SECONDS = 25
"""With less it would count nothing: in 9 s it had not begun to on an H200."""
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
_KERNELS = "regex:(forward|backward|fill|scatter|settle)_kernel|grid_sampler"
"""Ours, and PyTorch's samplers."""
# Where installers put it, if it is not on the path.
_PLACES = ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")


def run(item: str, stage: Stage) -> Iterator[Record]:
    """A record for each kernel of a forward and backward of the first workloads."""
    ncu = find()
    if ncu is None:
        yield {"ok": True, "what": item, "problem": "Nsight Compute (ncu) is not installed"}
        return
    if stage.seconds_left() < LEAST_SECONDS and not stage.rehearse:
        problem = f"not tried: it needs {LEAST_SECONDS} s and {stage.seconds_left():.0f} were left"
        yield {"ok": True, "what": item, "problem": problem}
        return
    names = [w.name for w in subjects.TELLING[:MOST]][:: MOST if stage.rehearse else 1]
    command = [ncu, "--csv", "--print-units", "base", "--clock-control", "none", "--target-processes", "all"]
    command += ["--kernel-name", _KERNELS, "--metrics", ",".join(METRICS)]
    command += [sys.executable, "-m", "perf.evidence.profiled", *names, *["--rehearse"] * stage.rehearse]
    limit = max(stage.seconds_left() - 1, 1)
    with tempfile.TemporaryFile("w+") as output:  # which has what was counted even if the time ends
        try:
            subprocess.run(command, stdout=output, timeout=limit)
            problem = ""
        except subprocess.TimeoutExpired:
            problem = f"ncu did not end within {limit:.0f} s"
        output.seek(0)
        text = output.read()
    kernels = read(text)
    if not kernels or problem:
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith('"')]
        yield {
            "ok": True,
            "what": item,
            "problem": problem or f"ncu counted nothing: {(lines or ['-'])[-1][:300]}",
        }
    workload, before = 0, ""
    for kernel in kernels:
        name = kernel["kernel"]
        # Each workload is the operator's forward and backward, then the pair's.
        workload += name == "forward_kernel" and "grid_sampler" in before
        before = name
        yield {"ok": True, "what": f"{names[min(workload, len(names) - 1)]}: {name}", **kernel}


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

    Lines of the program and of ncu's own may stand before, between and after those of the table.
    """
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if not lines or not lines[0].startswith('"ID"'):
        return []
    table = pd.read_csv(io.StringIO("\n".join(lines)), dtype=str, keep_default_na=False)
    if not {"ID", "Kernel Name", "Metric Name", "Metric Value"} <= set(table.columns):
        return []
    found = []
    for _, rows in table.groupby("ID", sort=False):
        full = rows["Kernel Name"].iloc[0]
        name = re.search(r"\w*(_kernel|grid_sampler)\w*", full)
        record: Record = {"kernel": name[0] if name else full[:80]}
        for metric, value in zip(rows["Metric Name"], rows["Metric Value"], strict=True):
            number = pd.to_numeric(value.replace(",", ""), errors="coerce")
            record[METRICS.get(metric, metric)] = None if pd.isna(number) else float(number)
        nanoseconds, moved = record.get("ns"), record.get("DRAM bytes")
        if nanoseconds and moved:
            record["GB/s"] = round(moved / nanoseconds, 1)
        found.append(record)
    return found
