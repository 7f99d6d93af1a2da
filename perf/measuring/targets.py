"""What the project wants to reach on an H100 class GPU, and whether a table of results does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from perf.files import EAGER, FAILED, OPERATOR, geometric_mean
from perf.measuring.maps import MAPS
from perf.measuring.passes import PASSES
from perf.measuring.providers import COMPILE, PROVIDERS
from perf.measuring.results import CELL, against, timed
from perf.measuring.workloads import WORKLOADS, Workload

MET, MISSED = "met", "missed"
_FEW_CHANNELS, _MANY_CHANNELS = 16, 64


class Target(NamedTuple):
    """One target and what became of it."""

    name: str
    asked: str
    measured: str
    verdict: str
    """met, missed, or not measured (why)."""


def targets(table: pd.DataFrame) -> list[Target]:
    """Judge a table of ``bench``; sweeps do not count, they would weigh a few shapes many times.

    A target is met only if every row of the suite that it is about has been measured; it is missed as soon as
    the rows at hand miss it whatever the others are. On a CPU, or in a quick run, nothing is decided.
    """
    found = [
        *(
            _bandwidth(table, pass_name, layout, least)
            for pass_name, least in (("forward", 0.85), ("forward+backward", 0.75))
            for layout in ("NCHW", "channels_last")
        ),
        *(_never_slower(table, rival) for rival in (EAGER, COMPILE)),
        *(
            _mean(table, rival, few, least)
            for few, asked in ((True, (4, 3)), (False, (2, 1.5)))
            for rival, least in zip((EAGER, COMPILE), asked, strict=True)
        ),
        _no_grid(table),
    ]
    if not (table["device_type"] == "cpu").any() and not table["quick"].any():
        return found
    why_not = "a CPU" if (table["device_type"] == "cpu").any() else "a quick run"
    return [target._replace(measured="", verdict=f"not measured ({why_not})") for target in found]


def _bandwidth(table: pd.DataFrame, pass_name: str, layout: str, least: float) -> Target:
    name = f"{pass_name}, {_MANY_CHANNELS} channels and up, {layout}: share of copy bandwidth"

    def concerns(workload: Workload, pass_: str) -> bool:
        return pass_ == pass_name and workload.shape[1] >= _MANY_CHANNELS and workload.layout == layout

    rows, why_not = _operator_rows(table, concerns)
    asked = f"at least {least:.0%}"
    rows = rows[rows["roofline"].notna()]
    # Where the host takes longer to launch than the GPU to do, the replay of a graph tells of the kernel.
    fastest = rows[["median_ms", "graph_ms"]].min(axis=1)
    rows = rows.assign(roofline=rows["roofline"] * rows["median_ms"] / fastest)
    if rows.empty:
        return Target(name, asked, "", f"not measured ({why_not or 'no bandwidth in the rows'})")
    worst = rows.loc[rows["roofline"].idxmin()]
    reached = int((rows["roofline"] >= least).sum())
    measured = f"{reached} of {len(rows)} rows; least {worst['roofline']:.0%} ({_where(worst)})"
    return Target(name, asked, measured, _verdict(reached == len(rows), why_not, decided=reached < len(rows)))


def _never_slower(table: pd.DataFrame, rival: str) -> Target:
    name = f"never slower than {PROVIDERS[rival].label}"
    _, why_not = _operator_rows(table, lambda *_: True)
    rows = _of_suite(against(table, rival))
    asked = "no row"
    if rows.empty:
        return Target(name, asked, "", f"not measured ({why_not or _no_time(rival)})")
    slower = rows[rows["ratio"] < 1]
    beyond_noise = slower[~slower["in_noise"]]
    measured = f"slower in {len(beyond_noise)} of {len(rows)} rows"
    if len(slower) > len(beyond_noise):
        measured += f", and in {len(slower) - len(beyond_noise)} within noise"
    if len(slower):
        worst = slower.loc[slower["ratio"].idxmin()]
        measured += f"; least {worst['ratio']:.2f}x ({_where(worst)})"
    return Target(name, asked, measured, _verdict(beyond_noise.empty, why_not, decided=len(beyond_noise) > 0))


def _mean(table: pd.DataFrame, rival: str, few: bool, least: float) -> Target:
    kind = f"up to {_FEW_CHANNELS} channels" if few else f"over {_FEW_CHANNELS} channels"
    name = f"geometric mean over the suite against {PROVIDERS[rival].label}, {kind}"

    def concerns(workload: Workload, pass_name: str) -> bool:
        return (workload.shape[1] <= _FEW_CHANNELS) == few

    _, why_not = _operator_rows(table, concerns)
    rows = _of_suite(against(table, rival))
    channels = rows["workload"].map(lambda workload: WORKLOADS[workload].shape[1])
    rows = rows[(channels <= _FEW_CHANNELS) == few]
    asked = f"at least {least:g}x"
    if rows.empty:
        return Target(name, asked, "", f"not measured ({why_not or _no_time(rival)})")
    mean = geometric_mean(rows["ratio"])
    return Target(name, asked, f"{mean:.2f}x over {len(rows)} rows", _verdict(mean >= least, why_not))


def _no_grid(table: pd.DataFrame) -> Target:
    """What a call allocates beyond its results must be less than half a grid, the least that could store one.

    Or 1 % of the results, if that is more: many channels on few pixels have more partial sums of the gradient
    of theta than a grid has bytes.
    """
    name, asked = "no grid in peak memory", "less than half a grid, or 1 %, beyond the results"
    rows, why_not = _operator_rows(table, lambda _, pass_name: pass_name in ("forward", "forward+backward"))
    rows = rows[rows["peak_mib"].notna()]
    if rows.empty:
        return Target(name, asked, "", f"not measured ({why_not or 'no peak memory in the rows'})")
    shares = [_beyond_results(row) for _, row in rows.iterrows()]
    worst = max(range(len(rows)), key=lambda i: shares[i])
    measured = f"at most {shares[worst]:.2f} of what is allowed ({_where(rows.iloc[worst])})"
    return Target(name, asked, measured, _verdict(shares[worst] < 1, why_not, decided=shares[worst] >= 1))


def _beyond_results(row: pd.Series) -> float:
    """Bytes allocated beyond the results, as a share of what is allowed."""
    workload = WORKLOADS[row["workload"]]
    size = workload.size or workload.shape[2:]
    outputs = workload.shape[0] * max(workload.crops, 1)
    results = outputs * workload.shape[1] * math.prod(size) * workload.dtype.itemsize
    if row["pass"] != "forward":
        results += math.prod(workload.shape) * workload.dtype.itemsize
        results += outputs * len(size) * (len(size) + 1) * 4
    grid = outputs * math.prod(size) * len(size) * 4
    return (row["peak_mib"] * 2**20 - results) / max(grid / 2, results / 100)


def _operator_rows(
    table: pd.DataFrame, concerns: Callable[[Workload, str], bool]
) -> tuple[pd.DataFrame, str]:
    """The operator's timed rows that a target concerns; and why they decide nothing, empty if they do."""
    wanted = {
        (workload.name, map_name, pass_name)
        for workload in WORKLOADS.values()
        for map_name in MAPS
        for pass_name in PASSES
        if not workload.sweep
        and not workload.why_not(map_name)
        and (workload.dtype.is_floating_point or pass_name == "forward")
        and concerns(workload, pass_name)
    }
    ours = _of_suite(timed(table))
    ours = ours[ours["provider"] == OPERATOR]
    cells = list(ours[CELL].itertuples(index=False, name=None))
    rows = ours[np.array([cell in wanted for cell in cells], dtype=bool)]
    failed = int(((table["provider"] == OPERATOR) & (table["status"] == FAILED)).sum())
    if failed:
        return rows, f"{failed} rows of the operator failed"
    measured = len(wanted.intersection(cells))
    return rows, "" if measured == len(wanted) else f"{measured} of {len(wanted)} rows of the suite"


def _of_suite(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of workloads that are named and shaped as today; a file may come from another version."""
    shapes = {name: "x".join(map(str, w.shape)) for name, w in WORKLOADS.items() if not w.sweep}
    return table[table["workload"].map(shapes) == table["shape"]]


def _verdict(reached: bool, why_not: str, decided: bool = False) -> str:
    if why_not and not decided:
        return f"not measured ({why_not})"
    return MET if reached else MISSED


def _where(row: pd.Series) -> str:
    return " ".join(row[name] for name in CELL)


def _no_time(rival: str) -> str:
    return f"{PROVIDERS[rival].label} has no times"
