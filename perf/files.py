"""Result files of ``bench``: reading them, and telling apart the runs that they hold.

A result file may come from another version, another machine or another person, and may be damaged.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from perf import UsageError

OK, FAILED = "ok", "FAILED"  # statuses of a row; others, such as unavailable, are shown as they are
OPERATOR, EAGER = "operator", "eager"  # the provider that is judged, and the one that it is judged by
KEY = ["workload", "map", "pass", "provider", "shape", "dtype", "layout", "size"]
"""The columns that identify a measurement: no two rows of a run agree in all of them."""
FACTS = [
    *("device", "device_type", "driver", "toolkit", "cpu", "threads", "platform"),
    *("python", "torch", "triton", "stn_triton", "commit", "date"),
]
BELIEVABLE = (1e-9, 1e9)
"""Measured numbers outside of this range are not used, whatever a file says."""
FEW_SAMPLES = 10
"""Quantiles of fewer samples do not show the noise."""
SWEEP = r"(size|batch|channels)-([0-9]{1,9})"
"""Names of the workloads that differ in one number: ``size-512``."""
_NEEDED = {"workload", "pass", "provider", "status", "median_ms"}
_TEXT = [*KEY, "status", "reason", "checked", *FACTS]
_MEASURED = [
    *("median_ms", "q20_ms", "q80_ms", "graph_ms", "speedup"),
    *("peak_mib", "model_mib", "gb_per_s", "roofline", "copy_gb_per_s"),
]
_NUMBERS = [*_MEASURED, "samples", "error", "tolerance"]
_EXPECTED = "expected a speed.csv, as `python -m perf bench` writes it"
# Control characters, directions of writing and surrogates: XML and terminals must not receive them.
_CONTROL = r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"


@dataclass(frozen=True)
class Run:
    """The rows of one machine with one set of versions and one commit, and the facts that they share."""

    rows: pd.DataFrame
    facts: dict[str, str]
    quick: bool
    name: str
    """Number, device and commit, for names of files."""


def read_speed(path: Path) -> pd.DataFrame:
    """Read a result file of ``bench``, or the directory of one, as ``normal`` returns it.

    A directory means its ``speed.csv``. In a directory without one, all result files are read.

    Raises:
        UsageError: There is no such file, ``bench`` did not write it, or it is damaged.
    """
    if (path / "speed.csv").is_file():
        path = path / "speed.csv"
    if not path.is_dir():
        return normal(_read(path), str(path))
    tables = {str(one): _read(one) for one in sorted(path.glob("*.csv"))}
    found = [normal(table, name) for name, table in tables.items() if set(table.columns) >= _NEEDED]
    if not found:
        raise UsageError(f"{path}: holds no result file; {_EXPECTED}")
    return pd.concat(found, ignore_index=True)


def normal(table: pd.DataFrame, source: str = "table") -> pd.DataFrame:
    """Return a table of any version of ``bench`` with all columns that this version writes.

    A missing text becomes "", a missing number NaN. A measured number becomes NaN if the status of its row
    is not ok, or if the number is outside of ``BELIEVABLE``.

    Raises:
        UsageError: The table is not one of ``bench``, has no rows, or has text in a column of numbers.
    """
    lacking = ", ".join(sorted(_NEEDED - set(table.columns)))
    if lacking:
        kind = "holds timings of `tune`" if "BLOCK_C" in table else "is no result file"
        raise UsageError(f"{source}: {kind}, it lacks the columns {lacking}; {_EXPECTED}")
    if table.empty:
        raise UsageError(f"{source}: has a header and no rows; {_EXPECTED}")
    columns = dict.fromkeys([*table.columns, *_TEXT, *_NUMBERS, "quick"])
    table = table.reset_index(drop=True).reindex(columns=list(columns)).astype(object)
    table = table.where(table.notna(), "")
    table[_TEXT] = table[_TEXT].astype(str).replace(_CONTROL, " ", regex=True)
    for column in _NUMBERS:
        numbers = pd.to_numeric(table[column], errors="coerce").astype(float)
        wrong = table.loc[numbers.isna() & (table[column] != ""), column]
        if len(wrong):
            found = f"column {column}, row {wrong.index[0] + 2} is {str(wrong.iloc[0])[:40]!r}"
            raise UsageError(f"{source}: {found}; expected a number")
        table[column] = numbers
    is_kept = table[_MEASURED].map(lambda number: BELIEVABLE[0] <= number <= BELIEVABLE[1])
    table[_MEASURED] = table[_MEASURED].where(is_kept.mul(table["status"] == OK, axis=0))
    table["quick"] = table["quick"].astype(str).str.lower().isin(["true", "1", "1.0"])
    # Files older than the names of maps measured random maps alone.
    return table.assign(map=table["map"].replace("", "random"))


def timed(table: pd.DataFrame) -> pd.Series:
    """Which rows have a time: their status is ok and their median can be one."""
    return (table["status"] == OK) & table["median_ms"].between(*BELIEVABLE)


def geometric_mean(values: pd.Series) -> float:
    """Geometric mean of the finite values above 0; NaN if there are none."""
    values = values[(values > 0) & np.isfinite(values)]
    return float(np.exp(np.log(values).mean()))


def value_of(rows: pd.DataFrame, provider: str, column: str) -> pd.Series:
    """The number that ``provider`` has in the workload, map and pass of each row of a run, or NaN."""
    cell = [name for name in KEY if name != "provider"]
    own = rows[rows["provider"] == provider].set_index(cell)[column]
    return own.reindex(pd.MultiIndex.from_frame(rows[cell])).set_axis(rows.index)


def runs(table: pd.DataFrame) -> list[Run]:
    """Split a normal table into its runs, in the table's order.

    Rows that differ in a fact other than the date belong to different runs. Rows of different dates do so
    only if a run would otherwise hold a measurement twice. Of equal ones of one date the last counts.
    """
    parts: list[pd.DataFrame] = []
    for _, rows in table.groupby([*(fact for fact in FACTS if fact != "date"), "quick"], sort=False):
        is_twice = rows.duplicated(KEY).any()
        parts += [part for _, part in rows.groupby("date", sort=False)] if is_twice else [rows]
    found = []
    for number, part in enumerate(parts, 1):
        rows = part.drop_duplicates(KEY, keep="last").reset_index(drop=True)
        facts = rows[FACTS].iloc[0].to_dict()
        name = re.sub(r"[^a-z0-9]+", "-", f"{number} {facts['device']} {facts['commit']}".lower())
        found.append(Run(rows, facts, bool(rows["quick"].iloc[0]), name[:80].strip("-")))
    return found


def _read(path: Path) -> pd.DataFrame:
    """Read a CSV as text: a commit such as 12345e10 would otherwise become a number."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file or directory; {_EXPECTED}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read as a table ({error}); {_EXPECTED}") from None
    if any(len(row) != len(head) for row in rows) or len(set(head)) < len(head):
        problem = "a row is shorter or longer than the header, or two columns share a name"
        raise UsageError(f"{path}: {problem}: the file is cut off or damaged; {_EXPECTED}")
    return pd.DataFrame(rows, columns=head)
