"""The few numbers that a run comes down to; sweeps are left out, they would weigh a few shapes many times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from perf.charts.measures import percent
from perf.files import EAGER, FAILED, KEY, OK, OPERATOR, Run, geometric_mean, sweep_of, timed

_CELL = [name for name in KEY if name != "provider"]
_RIVALS = {EAGER: "the eager pair", "compile": "torch.compile"}
_PASSES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Number:
    """A number for the head of a report, and what it says."""

    value: str
    text: str


def numbers(run: Run) -> list[Number]:
    """Speed over each rival, fraction of the roofline and peak memory; then what has no time."""
    rows = run.rows[[sweep_of(name) is None for name in run.rows["workload"]]]
    found = []
    for pass_name in _PASSES:
        part = rows[rows["pass"] == pass_name]
        found += [n for rival in _RIVALS if (n := _speed(part, pass_name, rival))]
    for pass_name in _PASSES:
        found += [n for n in [_roofline(rows[rows["pass"] == pass_name], pass_name)] if n]
    memory = against(rows[rows["pass"].isin(_PASSES)], EAGER, "peak_mib")
    if len(memory):
        text = "of the eager pair's peak memory: geometric mean of"
        found.append(Number(percent(1 / geometric_mean(memory)), f"{text} {_rows(len(memory))}"))
    copy = rows["copy_gb_per_s"].dropna()
    if len(copy):
        found.append(Number(f"{copy.median():.4g} GB/s", "copy bandwidth of the device, measured in the run"))
    without = run.rows.loc[~timed(run.rows), "status"].replace(OK, "ok, but no time").value_counts()
    counts = ", ".join(f"{n:,} {status}" for status, n in without.items())
    found.append(Number(f"{len(run.rows):,}", f"rows; without a time: {counts or 'none'}"))
    own = run.rows[run.rows["provider"] == OPERATOR]
    failed = int((own["status"] == FAILED).sum())
    if failed:
        found.append(Number(f"{failed:,}", f"of {_rows(len(own))} of the operator FAILED"))
    return found


def against(rows: pd.DataFrame, rival: str, column: str) -> pd.Series:
    """A rival's value over the operator's, wherever both have one above 0."""
    rows = rows[timed(rows) & (rows[column] > 0) & np.isfinite(rows[column])]
    own, other = (
        rows[rows["provider"] == name].drop_duplicates(_CELL).set_index(_CELL)[column]
        for name in (OPERATOR, rival)
    )
    return (other / own).dropna()


def _speed(rows: pd.DataFrame, pass_name: str, rival: str) -> Number | None:
    ratios = against(rows, rival, "median_ms")
    if ratios.empty:
        return None
    lost = int((ratios < 1).sum())
    what = f"as fast as {_RIVALS[rival]}, {pass_name.replace('+', ' + ')}"
    span = f"{ratios.min():.2f}x to {ratios.max():.2f}x; slower on {lost}"
    text = f"{what}: geometric mean of {_rows(len(ratios))}, {span}"
    return Number(f"{geometric_mean(ratios):.2f}x", text)


def _roofline(rows: pd.DataFrame, pass_name: str) -> Number | None:
    values = rows.loc[timed(rows) & (rows["provider"] == OPERATOR), "roofline"].dropna()
    if values.empty:
        return None
    text = f"of the copy bandwidth, {pass_name.replace('+', ' + ')}: median of {_rows(len(values))}"
    return Number(percent(values.median()), f"{text}, {percent(values.min())} to {percent(values.max())}")


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count != 1 else ''}"
