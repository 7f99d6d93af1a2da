"""Result files: what stands in them, reading them, and telling apart the runs that they hold.

A result file is foreign input: it may come from another version, another machine or another hand. Reading it
needs neither torch nor a GPU.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from perf import UsageError

OK, FAILED = "ok", "FAILED"
"""Statuses; others (unavailable, skipped) are shown as they are."""
OPERATOR, EAGER = "operator", "eager"
"""Providers with a part of their own: what is judged, and what it is judged by."""
KEY = ("workload", "map", "pass", "provider", "shape", "dtype", "layout", "size")
"""What a row of ``bench`` measured; no two rows of a run share it."""
FACTS = (
    *("device", "device_type", "driver", "toolkit", "cpu", "threads", "platform"),
    *("python", "torch", "triton", "stn_triton", "commit", "date"),
)
BELIEVABLE = (1e-9, 1e9)
"""A ratio or a number of milliseconds beyond these is none, whatever a foreign file says."""
_NEEDED = {
    "speed": {"workload", "pass", "provider", "status", "median_ms"},
    "tuning": {"bucket", "BLOCK_C", "BLOCK_H", "BLOCK_W", "num_warps", "median_ms"},
}
_TEXT = {
    "speed": (*KEY, "status", "reason", "checked", *FACTS),
    "tuning": ("bucket", "kernel", "variant", "layout", "dtype", "status", *FACTS),
}
_CONFIG = ("BLOCK_C", "STEPS_C", "RUN_C", "BLOCK_H", "BLOCK_W", "num_warps")
_TIMES = ("q20_ms", "median_ms", "q80_ms")
_NUMBERS = {
    "speed": (
        *(*_TIMES, "samples", "graph_ms", "speedup", "peak_mib", "model_mib", "gb_per_s", "roofline"),
        *("error", "tolerance", "copy_gb_per_s"),
    ),
    "tuning": ("channels", "pixels", "planes", *_CONFIG, *_TIMES),
}
_FLAGS = {"speed": ("quick",), "tuning": ("is_default", "is_best")}
# What files lack that were written before maps had names, when every workload had its random ones.
_DEFAULTS = {"map": "random", "status": OK}
_EXPECTED = "expected a CSV that `python -m perf bench` or `tune` wrote, or a directory of them"
_SWEEP = re.compile(r"(size|batch|channels)-(\d+)")
# Neither XML nor a terminal should meet these.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Files:
    """What a path holds: the rows of ``bench`` and those of ``tune``, either may be None."""

    speed: pd.DataFrame | None
    tuning: pd.DataFrame | None


@dataclass(frozen=True)
class Run:
    """The rows of one machine with one set of versions and one commit, and the facts that they share."""

    rows: pd.DataFrame
    facts: dict[str, str]
    quick: bool
    name: str
    """For file names: device and commit, unlike any other run's of the same table."""
    repeated: int
    """Rows left out because a later one measured the same."""


def read(path: Path) -> Files:
    """The rows of a result file, or of those of a directory.

    A directory means its speed.csv and tuning.csv; where it has no speed.csv, all result files in it.

    Raises:
        UsageError: there is no such file, it is none that ``bench`` or ``tune`` wrote, or it is cut off.
    """
    if (path / "speed.csv").is_file():
        paths = [path / name for name in ("speed.csv", "tuning.csv") if (path / name).is_file()]
        tables = [_read_one(p) for p in paths]
    elif path.is_dir():
        paths = sorted(path.glob("*.csv"))
        tables = [table for table in map(_read_one, paths) if kind(table) is not None]
        if not tables:
            found = f"no result file, only {', '.join(p.name for p in paths)}" if paths else "no CSV"
            raise UsageError(f"{path}: holds {found}; {_EXPECTED}")
    else:
        tables = [_read_one(path)]
    normalized = [normal(table, str(path)) for table in tables]
    return Files(*(_join(t for t in normalized if kind(t) == name) for name in ("speed", "tuning")))


def read_speed(path: Path) -> pd.DataFrame:
    """The rows of ``bench`` alone, errors as in ``read``."""
    table = read(path).speed
    if table is None:
        raise UsageError(f"{path}: holds timings of `tune`; expected a CSV that `python -m perf bench` wrote")
    return table


def kind(table: pd.DataFrame) -> str | None:
    """``speed`` or ``tuning`` by the columns; None if it is neither."""
    return next((name for name, needed in _NEEDED.items() if needed <= set(table.columns)), None)


def normal(table: pd.DataFrame, source: str = "table") -> pd.DataFrame:
    """The table with every column that its kind has today: text "" and numbers NaN where it has none.

    Raises:
        UsageError: it is no result table, has no rows, or has no number where one belongs.
    """
    name = kind(table)
    if name is None:
        lacking = ", ".join(sorted(_NEEDED["speed"] - set(table.columns)))
        raise UsageError(f"{source}: is no result file, it lacks the columns {lacking}; {_EXPECTED}")
    if table.empty:
        raise UsageError(f"{source}: has a header and no rows; {_EXPECTED}")
    table = table.reset_index(drop=True)
    columns: dict[str, object] = {column: table[column] for column in table.columns}
    for column in _TEXT[name]:
        default = _DEFAULTS.get(column, "")
        values = table[column] if column in table else [None] * len(table)
        columns[column] = [default if _is_missing(v) else _CONTROL.sub(" ", str(v)) for v in values]
    for column in _NUMBERS[name]:
        columns[column] = _numbers(table[column], source) if column in table else np.nan
    for column in _FLAGS[name]:
        values = table[column] if column in table else [False] * len(table)
        columns[column] = [str(v).strip().lower() in ("true", "1", "1.0") for v in values]
    return pd.DataFrame(columns)


def timed(table: pd.DataFrame) -> pd.Series:
    """Which rows have a time: status ok and a median that can be one."""
    return (table["status"] == OK) & table["median_ms"].between(*BELIEVABLE)


def geometric_mean(values: pd.Series) -> float:
    """The mean of ratios, of those above 0; NaN of none."""
    values = values[(values > 0) & np.isfinite(values)]
    return float(np.exp(np.log(values).mean()))


def sweep_of(workload: str) -> tuple[str, int] | None:
    """What a workload of a scaling chart varies and its value, ``size-512`` is ("size", 512); None else."""
    match = _SWEEP.fullmatch(workload)
    return (match[1], int(match[2])) if match else None


def runs(table: pd.DataFrame) -> list[Run]:
    """The runs of a normal table, in its order: what was measured elsewhere or otherwise is not mixed.

    Rows that differ in a fact but the date are of different runs; so are those of different dates, if
    together they would hold a measurement twice.
    """
    key = list(KEY) if kind(table) == "speed" else ["bucket", *_CONFIG]
    apart = [fact for fact in FACTS if fact != "date"] + [c for c in ("quick",) if c in table]
    parts: list[pd.DataFrame] = []
    for _, rows in table.groupby(apart, sort=False):
        is_twice = rows.duplicated(key).any()
        parts += [part for _, part in rows.groupby("date", sort=False)] if is_twice else [rows]
    found, names = [], set()
    for rows in parts:
        facts = {fact: rows[fact].iloc[0] for fact in FACTS}
        once = rows.drop_duplicates(key, keep="last")
        name = unlike(slug(f"{facts['device']} {facts['commit']}") or "run", names)
        names.add(name)
        quick = "quick" in rows and bool(rows["quick"].any())
        found.append(Run(once.reset_index(drop=True), facts, quick, name, len(rows) - len(once)))
    return found


def slug(text: str) -> str:
    """Lower-case letters, digits and hyphens: a name for a file whatever the text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80]


def unlike(name: str, others: Iterable[str]) -> str:
    """The name, numbered if it is taken."""
    return next(n for n in _numbered(name) if n not in others)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def _read_one(path: Path) -> pd.DataFrame:
    try:
        # As text: else a commit such as 12345e10 is a number, and a reason "None" is none.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        _check_end(path)
        return table
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file or directory; {_EXPECTED}") from None
    except pd.errors.EmptyDataError:
        raise UsageError(f"{path}: is empty; {_EXPECTED}") from None
    except (pd.errors.ParserError, UnicodeDecodeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: cannot be read as a table ({reason}); {_EXPECTED}") from None


def _check_end(path: Path) -> None:
    """Refuse a file whose last line lacks columns: pandas would take them for empty."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        lines = [(len(row), reader.line_num) for row in reader if row]
    (expected, _), (found, number) = lines[0], lines[-1]
    if found < expected:
        raise UsageError(
            f"{path}: line {number} has {found} columns, expected {expected}: the file is cut off"
        )


def _join(tables: Iterable[pd.DataFrame]) -> pd.DataFrame | None:
    tables = list(tables)
    return pd.concat(tables, ignore_index=True) if tables else None


def _is_missing(value: object) -> bool:
    return bool(pd.isna(value)) or value == ""


def _numbers(values: pd.Series, source: str) -> pd.Series:
    values = values.map(lambda v: np.nan if _is_missing(v) else v)
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    wrong = values[numbers.isna() & values.notna()]
    if len(wrong):
        where = f"column {values.name}, row {wrong.index[0] + 2}"
        raise UsageError(f"{source}: {where} is {str(wrong.iloc[0])[:40]!r}; expected a number")
    return numbers
