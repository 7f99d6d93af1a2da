"""The timings so far, in a CSV from which a later run goes on; and the table of the best block sizes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd

from perf.tuning.fastest import LOST, Effort, Result
from stn_triton import tables, tuning
from stn_triton.buckets import Bucket
from stn_triton.policy import CONFIG_KEYS
from stn_triton.tuning import Config

IDENTITY = ("device", "torch", "triton", "kernels")
"""Earlier timings are used only where all of these are the same."""
_TIMES = ["q20_ms", "median_ms", "q80_ms"]
COLUMNS = [
    *("bucket", *Bucket._fields, *CONFIG_KEYS, *_TIMES, "is_default", "is_best", "status"),
    *("device", "torch", "triton", "commit", "date", "kernels"),
]


class Keeper:
    """Keeps a row per bucket and configuration in a CSV, and the best of each bucket in a table."""

    def __init__(
        self, csv: Path, table: Path, facts: Mapping[str, object], effort: Effort, say: Callable[[str], None]
    ) -> None:
        self.path = csv
        self.table = table
        self.rows = pd.DataFrame(columns=COLUMNS)
        self._facts = {**facts, "kernels": tables.kernels()}
        self.effort = effort
        self._say = say

    def open(self, fresh: bool) -> None:
        """Read the rows of an earlier run. Other files are set aside, and if ``fresh`` this one too."""
        if not self.path.exists():
            return
        try:
            if fresh:
                raise ValueError("is of an earlier run")
            self.rows = self._read()
        except (ValueError, TypeError, OSError) as error:
            names = (self.path.with_name(f"{self.path.name}.old-{i}") for i in itertools.count(1))
            aside = self.path.rename(next(path for path in names if not path.exists()))
            self._say(f"{self.path} {error}: set aside as {aside.name}")

    def of(self, bucket: Bucket) -> pd.DataFrame:
        """The rows of a bucket."""
        return self.rows[self.rows["bucket"] == bucket.name()]

    def is_done(self, bucket: Bucket) -> bool:
        """Whether all configurations of a bucket were tried, or one of them broke the GPU's context."""
        rows = self.of(bucket)
        tried = rows[list(CONFIG_KEYS)].to_dict("records")
        is_whole = rows["is_best"].any() and all(c in tried for c in self.effort.configs_of(bucket))
        return bool(is_whole or rows["status"].str.startswith(LOST).any())

    def add(self, bucket: Bucket, results: Iterable[Result]) -> None:
        """Keep what was found for a bucket, in place of what was known of it, and write both files.

        Raises:
            OSError: one cannot be written; the CSV is as it was.
        """
        found = [
            {
                "bucket": bucket.name(),
                **bucket._asdict(),
                **result.config,
                **dict(zip(_TIMES, result.quantiles or (float("nan"),) * 3, strict=True)),
                "is_default": result.is_default,
                "is_best": result.is_best,
                "status": result.status,
                **{key: self._facts[key] for key in COLUMNS if key in self._facts},
            }
            for result in results
        ]
        others = self.rows[self.rows["bucket"] != bucket.name()].to_dict("records")
        self.rows = pd.DataFrame([*others, *found], columns=COLUMNS)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.partial")  # a run may be killed while it writes
        self.rows.to_csv(partial, index=False, float_format="%.7g")
        partial.replace(self.path)
        self.write_table()

    def configs(self) -> dict[str, Config]:
        """The best block sizes of each bucket that is done, by its name."""
        best = self.rows[self.rows["is_best"].astype(bool)]
        found = dict(zip(best["bucket"], best[list(CONFIG_KEYS)].to_dict("records"), strict=True))
        return {name: config for name, config in found.items() if self.is_done(Bucket.parse(name))}

    def write_table(self) -> None:
        """Write the best of all buckets into the table, which keeps its other buckets of these kernels."""
        found = self.configs()
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
        kinds = {**dict.fromkeys(CONFIG_KEYS, int), **dict.fromkeys(_TIMES, float)}
        kinds |= {"is_best": bool, "is_default": bool}
        text = dict.fromkeys(("bucket", "status", "commit", "date", *IDENTITY), str)
        table = pd.read_csv(
            self.path, dtype={**text, **kinds}, keep_default_na=False, na_values=dict.fromkeys(_TIMES, "")
        )
        if list(table.columns) != COLUMNS:
            raise ValueError("has other columns, as from an older version")
        for name in IDENTITY:
            others = set(table[name]) - {str(self._facts[name])}
            if others:
                raise ValueError(f"was measured with {name} {', '.join(others)}, this is {self._facts[name]}")
        for row in table.to_dict("records"):
            if tuning.checked(row["bucket"], {key: row[key] for key in CONFIG_KEYS}) is None:
                raise ValueError(f"is corrupt in the row of {row['bucket'][:60]!r}")
        return table
