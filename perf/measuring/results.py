"""Rows as a table: their columns and the CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

Row = dict[str, Any]
UNAVAILABLE = "unavailable"
CELL = ["workload", "map", "pass"]
"""Columns within whose groups providers are compared."""
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
