"""The timings so far, in a CSV from which a later run goes on, and the best of them."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from perf import UsageError
from perf.files import geometric_mean
from perf.tuning.fastest import TIMES, named
from stn_triton import tables, tuning
from stn_triton.buckets import Bucket
from stn_triton.policy import CONFIG_KEYS
from stn_triton.tuning import Config

LOST = "lost the GPU"
"""Beginning of a status: no more can run in this process."""
IDENTITY = ("device", "torch", "triton", "kernels")
"""Earlier timings are used only where all of these are the same."""
COLUMNS = [
    *("bucket", *CONFIG_KEYS, *TIMES, "is_default", "is_best", "status"),
    *("device", "torch", "triton", "commit", "date", "kernels"),
]


class Keeper:
    """Keeps a row per bucket and configuration in a CSV, and the best of each bucket in a table."""

    def __init__(self, csv: Path, table: Path, facts: Mapping[str, object], most: int) -> None:
        self.path, self.table, self.most = csv, table, most
        self._partial = csv.with_name(f"{csv.name}.partial")
        self.rows = pd.DataFrame(columns=COLUMNS)
        self._facts = {**facts, "kernels": tables.kernels()}

    def open(self, fresh: bool) -> str:
        """Read the rows of an earlier run; returns why its file was set aside instead, if it was.

        Raises:
            UsageError: the CSV cannot be read, or it or the table cannot be written.
        """
        _check_writable("--out", self._partial)
        _check_writable("--table", self.table)
        if not self.path.exists():
            return ""
        try:
            if fresh:
                raise ValueError("is of an earlier run")
            self.rows = self._read()
        except OSError as error:
            reason = f"{self.path} cannot be read: {error.strerror}"
            raise UsageError(f"--out: {reason}; expected the CSV of an earlier run, or none") from None
        except (ValueError, TypeError) as error:
            names = (self.path.with_name(f"{self.path.name}.old-{i}") for i in itertools.count(1))
            aside = self.path.rename(next(path for path in names if not path.exists()))
            return f"{self.path} {error}: set aside as {aside.name}"
        self._write_table()
        return ""

    def configs_of(self, bucket: Bucket) -> list[Config]:
        """The configurations to try for a bucket, the default first."""
        return tuning.candidates(bucket, self.most)

    def is_done(self, bucket: Bucket) -> bool:
        """Whether all configurations of a bucket were tried, or one of them broke the GPU's context."""
        rows = self.rows[self.rows["bucket"] == bucket.name()]
        return len(rows) >= len(self.configs_of(bucket)) or rows["status"].str.startswith(LOST).any()

    def add(self, bucket: Bucket, found: Sequence[Mapping[str, Any]]) -> None:
        """Keep the rows of a search, in place of what was known of its bucket, and write both files.

        Raises:
            OSError: one cannot be written; the CSV is as it was.
        """
        others = self.rows[self.rows["bucket"] != bucket.name()].to_dict("records")
        found = [{"bucket": bucket.name(), **row, **self._facts} for row in found]
        self.rows = pd.DataFrame([*others, *found], columns=COLUMNS)
        # A run may be killed while it writes.
        self.rows.to_csv(self._partial, index=False, float_format="%.7g")
        self._partial.replace(self.path)
        self._write_table()

    def best(self) -> dict[str, Config]:
        """The best block sizes of each bucket that is done, by its name."""
        best = self.rows[self.rows["is_best"].astype(bool)]
        found = dict(zip(best["bucket"], best[list(CONFIG_KEYS)].to_dict("records"), strict=True))
        return {name: config for name, config in found.items() if self.is_done(Bucket.parse(name))}

    def gains(self, buckets: Iterable[Bucket]) -> pd.DataFrame:
        """A row per bucket with a time: ms of default and best, their ratio, and the best block sizes."""
        rows = self.rows[self.rows["bucket"].isin([bucket.name() for bucket in buckets])]
        best = rows[rows["is_best"].astype(bool)].set_index("bucket")
        default = rows[rows["is_default"].astype(bool)].set_index("bucket")["median_ms"]
        table = pd.DataFrame({"default_ms": default.reindex(best.index), "best_ms": best["median_ms"]})
        table["gain"] = table["default_ms"] / table["best_ms"]
        table["config"] = best[list(CONFIG_KEYS)].to_dict("records")
        table["is_default"] = best["is_default"].astype(bool)
        return table.reset_index()

    def _write_table(self) -> None:
        """Write the best of all buckets into the table, which keeps its other buckets of these kernels."""
        found = self.best()
        if not found:
            return
        device = self._facts["device"]
        with contextlib.suppress(tables.TableError):
            there = tables.read(self.table, device)
            if there is not None and there.kernels == tables.kernels():
                good, _ = there.parsed(tuning.checked)
                found = {**{bucket.name(): config for bucket, config in good.items()}, **found}
        tables.write(self.table, tables.Table(device, tables.kernels(), found))

    def _read(self) -> pd.DataFrame:
        """Read the rows of the file.

        Raises:
            ValueError: the file has none, or another machine's; the message follows the file's name.
        """
        kinds = {**dict.fromkeys(COLUMNS, str), **dict.fromkeys(CONFIG_KEYS, int)}
        kinds |= {**dict.fromkeys(TIMES, float), "is_best": bool, "is_default": bool}
        blanks = dict.fromkeys(TIMES, "")
        table = pd.read_csv(self.path, dtype=kinds, keep_default_na=False, na_values=blanks)
        if list(table.columns) != COLUMNS:
            raise ValueError("has other columns, as from an older version")
        for name in IDENTITY:
            if others := set(table[name]) - {str(self._facts[name])}:
                raise ValueError(f"was measured with {name} {', '.join(others)}, this is {self._facts[name]}")
        for row in table.to_dict("records"):
            if tuning.checked(row["bucket"], {key: row[key] for key in CONFIG_KEYS}) is None:
                raise ValueError(f"is corrupt in the row of {row['bucket'][:60]!r}")
        return table


def _check_writable(option: str, path: Path) -> None:
    """Make the directory of a file, and check that the file can be written.

    Raises:
        UsageError: it cannot; the message names the option that chooses another file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        reason = f"{path} cannot be written: {error.strerror}"
        raise UsageError(f"{option}: {reason}; expected a path in a writable directory") from None


def printed(gains: pd.DataFrame) -> str:
    """The table of gains, the largest first, and their mean."""
    if gains.empty:
        return "no bucket has a time"
    shown = gains.sort_values("gain", ascending=False)
    shown = shown.assign(best=shown["config"].map(named).mask(shown["is_default"], "the default"))
    columns = ["bucket", "default_ms", "best_ms", "gain", "best"]
    mean = f"{geometric_mean(gains['gain']):.3f}x, the geometric mean over buckets ({len(gains)})"
    return (
        f"{shown[columns].to_string(index=False, float_format='%.4f')}\n"
        f"gain over the default: {mean}\n"
        f"buckets where the default was the best, or as good within noise: {gains['is_default'].sum()}"
    )
