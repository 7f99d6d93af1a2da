"""Rows as a table: the CSV, and what is printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from perf.workloads import WORKLOADS

OK, FAILED, UNAVAILABLE = "ok", "FAILED", "unavailable"

_MEASURED = [
    *("workload", "shape", "dtype", "layout", "pass", "provider", "status", "reason"),
    *("q20_ms", "median_ms", "q80_ms", "samples", "speedup", "peak_mib"),
    *("checked", "error", "tolerance"),
]


def frame(rows: Sequence[dict[str, Any]], facts: dict[str, str | int], *, quick: bool) -> pd.DataFrame:
    """The rows of ``bench.run``, each with the facts of the machine; a row without a time has none."""
    table = pd.DataFrame(rows).reindex(columns=_MEASURED)
    table["samples"] = table["samples"].astype("Int64")
    return table.assign(quick=quick, **facts)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write the table; seven digits are more than any timer gives."""
    table.to_csv(path, index=False, float_format="%.7g")


def report(table: pd.DataFrame, facts: dict[str, str | int]) -> str:
    """The table as text, then what its reader must know: rows without a time, the workloads, the device."""
    text = pd.DataFrame([_printed(row) for row in table.to_dict("records")])
    # A name once per group reads better than on every line.
    same_workload = text["workload"].eq(text["workload"].shift())
    text.loc[same_workload & text["pass"].eq(text["pass"].shift()), "pass"] = ""
    text.loc[same_workload, ["workload", "shape"]] = ""
    parts = [text.to_string(index=False), ""]
    without_time = table[table["status"] != OK]
    for (status, provider, reason), rows in without_time.groupby(
        ["status", "provider", "reason"], sort=False
    ):
        where = ", ".join(rows["workload"] + " " + rows["pass"])
        parts.append(f"{status}: {provider} on {where}: {reason}")
    parts += [f"{name}: {WORKLOADS[name].who}" for name in table["workload"].unique()]
    if facts["device_type"] == "cpu":
        parts.append("On a CPU the operator runs its plain PyTorch path; its GPU kernels are not measured.")
    return "\n".join(parts)


def _printed(row: dict[str, Any]) -> dict[str, str]:
    timed = row["status"] == OK
    return {
        **{name: row[name] for name in ("workload", "shape", "pass", "provider")},
        "median ms": f"{row['median_ms']:.3f}" if timed else row["status"],
        "20-80 % ms": f"{row['q20_ms']:.3f} - {row['q80_ms']:.3f}" if timed else "",
        "vs eager": "" if pd.isna(row["speedup"]) else f"{row['speedup']:.2f}x",
    }
