"""Rows as a table: their columns, the CSV, and how the operator does against its rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from perf.files import OK, OPERATOR

Row = dict[str, Any]
UNAVAILABLE, SKIPPED = "unavailable", "skipped"
FEW_SAMPLES = 10
"""Quantiles of fewer say little."""
CELL = ["workload", "map", "pass"]
"""What providers are compared within."""
MEASURED = [
    *("workload", "shape", "size", "dtype", "layout", "map", "pass", "provider", "status", "reason"),
    *("q20_ms", "median_ms", "q80_ms", "samples", "graph_ms", "speedup"),
    *("peak_mib", "model_mib", "gb_per_s", "roofline"),
    *("checked", "error", "tolerance"),
]


def frame(rows: Sequence[Row], facts: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of ``suite.run``, each with the facts of the run; a row without a time has none."""
    table = pd.DataFrame(rows).reindex(columns=MEASURED)
    table["samples"] = table["samples"].astype("Int64")
    return table.assign(**facts)


def append(table: pd.DataFrame, path: Path) -> None:
    """Add rows to a CSV, which is made if need be; seven digits are more than any timer gives."""
    table.to_csv(path, mode="a", header=not path.exists(), index=False, float_format="%.7g")


def timed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that have a time."""
    return table[(table["status"] == OK) & table["median_ms"].notna()]


def against(table: pd.DataFrame, rival: str) -> pd.DataFrame:
    """The operator's rows where a rival has a time too, with ``ratio`` (more than 1: the operator is faster).

    ``in_noise`` says whether the 20 to 80 % intervals of the two overlap, or one of them has few samples:
    then the ratio decides nothing.
    """
    times = timed(table)
    columns = ["q20_ms", "median_ms", "q80_ms", "samples"]
    ours = times[times["provider"] == OPERATOR]
    theirs = times.loc[times["provider"] == rival, CELL + columns]
    both = ours.merge(theirs, on=CELL, suffixes=("", "_rival"))
    overlap = (both["q20_ms"] <= both["q80_ms_rival"]) & (both["q20_ms_rival"] <= both["q80_ms"])
    few = both[["samples", "samples_rival"]].min(axis=1) < FEW_SAMPLES
    return both.assign(
        ratio=both["median_ms_rival"] / both["median_ms"],
        in_noise=overlap | few.fillna(False).astype(bool),
    )
