"""Result files of ``bench``: the columns, writing rows, and reading a run.

A result file may come from another machine or another person, and may be damaged.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perf import UsageError

Row = dict[str, Any]
OK, UNAVAILABLE, FAILED = "ok", "unavailable", "FAILED"
"""Statuses of a row; others are shown as they are."""
OPERATOR, EAGER = "operator", "eager"  # the provider that is judged, and the one that it is judged by
KEY = ["workload", "map", "pass", "provider", "shape", "dtype", "layout", "size"]
"""The columns that identify a measurement: no two rows of a run agree in all of them."""
CELL = ["workload", "map", "pass"]  # the columns within whose groups providers are compared
FACTS = [
    *("device", "device_type", "driver", "toolkit", "cpu", "threads", "platform"),
    *("python", "torch", "triton", "stn_triton", "commit", "date"),
]
FEW_SAMPLES = 10  # quantiles of fewer do not show the noise
SWEEP = r"(size|batch|channels)-([0-9]{1,9})"  # names of the workloads that differ in one number
MEASURED = [
    *("workload", "shape", "size", "dtype", "layout", "map", "pass", "provider", "status", "reason"),
    *("q20_ms", "median_ms", "q80_ms", "samples", "graph_ms", "speedup"),
    *("peak_mib", "model_mib", "gb_per_s", "roofline"),
    *("checked", "error", "tolerance"),
]
_COLUMNS = [*MEASURED, "quick", "copy_gb_per_s", *FACTS]
_NEEDED = {"workload", "pass", "provider", "status", "median_ms"}
_TEXTS = [*KEY, "status", "reason", "checked", "quick", *FACTS]
_NUMBERS = [name for name in _COLUMNS if name not in _TEXTS]
_EXPECTED = "expected a speed.csv, as `python -m perf bench` writes it"
# Control characters, directions of writing and surrogates: XML and terminals must not receive them.
_CONTROL = r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"


@dataclass(frozen=True)
class Run:
    """The rows of one run of ``bench``, and the facts that they share."""

    rows: pd.DataFrame  # all columns that `bench` writes; a missing text is "", a missing number NaN
    facts: dict[str, str]

    @property
    def quick(self) -> bool:
        """Whether it was measured with ``--quick``."""
        return self.facts["quick"] == "True"

    @property
    def notes(self) -> list[str]:
        """Sentences that a reader of any number of this run must know."""
        on_cpu = "On a CPU the operator runs its plain PyTorch path; its GPU kernels are not measured."
        quick = "A quick run: small batches, few maps and repetitions; no measurement to cite."
        return [on_cpu] * (self.facts["device_type"] == "cpu") + [quick] * self.quick


def frame(rows: Sequence[Row], facts: Mapping[str, Any]) -> pd.DataFrame:
    """Make a table of rows, each with the facts of the run and its ratios; a row without a time has none."""
    table = pd.DataFrame(rows).reindex(columns=MEASURED).assign(**facts)
    table["samples"] = table["samples"].astype("Int64")
    table["speedup"] = value_of(table, EAGER, "median_ms") / table["median_ms"]
    table["roofline"] = table["gb_per_s"] / table["copy_gb_per_s"]
    return table


def append(table: pd.DataFrame, path: Path) -> None:
    """Add rows to a CSV, which is made if need be; seven digits are more than any timer gives."""
    table.to_csv(path, mode="a", header=not path.exists(), index=False, float_format="%.7g")


def read_run(path: Path) -> Run:
    """Read a result file of ``bench``, or the ``speed.csv`` of a directory.

    Of rows that measured the same the last counts.

    Raises:
        UsageError: There is no such file, ``bench`` did not write it, it is cut off, or its rows differ in a
            fact other than the date.
    """
    path = path / "speed.csv" if path.is_dir() else path
    types = defaultdict(lambda: str, dict.fromkeys(_NUMBERS, float))
    empty = {name: [""] for name in _NUMBERS}
    try:
        # Without types a commit such as 12345e10 would become a number.
        table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=empty, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error  # without the path, which is there already
        raise UsageError(f"{path}: cannot be read as a table ({reason}); {_EXPECTED}") from None
    lacking = ", ".join(sorted(_NEEDED - set(table.columns)))
    if lacking or table.empty:
        problem = f"lacks the columns {lacking}" if lacking else "has a header and no rows"
        raise UsageError(f"{path}: {problem}; {_EXPECTED}")
    older = dict.fromkeys(set(_TEXTS) - set(table.columns), "")
    table = table.assign(**older).reindex(columns=_COLUMNS)
    table[_TEXTS] = table[_TEXTS].replace(_CONTROL, " ", regex=True)
    for name in ("quick", *FACTS):
        values = table[name].unique()
        if len(values) > 1 and name != "date":
            problem = f"{name} is {values[0]!r} in one row and {values[1]!r} in another"
            raise UsageError(f"{path}: {problem}, so it is cut off or of several runs; {_EXPECTED}")
    rows = table.drop_duplicates(KEY, keep="last").reset_index(drop=True)
    return Run(rows, rows[["quick", *FACTS]].iloc[-1].to_dict())


def timed(table: pd.DataFrame) -> pd.Series:
    """Which rows have a time."""
    return (table["status"] == OK) & (table["median_ms"] > 0)


def geometric_mean(values: pd.Series) -> float:
    """Geometric mean of the finite values above 0; NaN if there are none."""
    values = values[(values > 0) & np.isfinite(values)]
    return float(np.exp(np.log(values).mean()))


def value_of(rows: pd.DataFrame, provider: str, column: str) -> pd.Series:
    """The number that ``provider`` has in the workload, map and pass of each row of a run, or NaN."""
    cell = [name for name in KEY if name != "provider"]
    own = rows[rows["provider"] == provider].set_index(cell)[column]
    return own.reindex(pd.MultiIndex.from_frame(rows[cell])).set_axis(rows.index)
