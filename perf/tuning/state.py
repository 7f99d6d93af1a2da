"""The timings so far, in a CSV from which a later run goes on, and the best of them in a table."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from perf import UsageError
from perf.measuring.suite import one_line
from perf.tuning.fastest import NUMBERS, Row, config_of
from stn_triton import tables
from stn_triton.buckets import Bucket
from stn_triton.policy import CONFIG_KEYS

COLUMNS = [
    *("bucket", *CONFIG_KEYS, *NUMBERS, "is_default", "is_best", "status"),
    *("device", "torch", "triton", "commit", "date", "kernels"),
]


class Keeper:
    """Keeps a row per bucket and configuration in a CSV, and the best of each bucket in a table.

    Raises:
        UsageError: a file cannot be read or written, or is of another GPU or of other versions. ``fresh``
            overwrites the CSV, whatever it is.
    """

    def __init__(self, csv: Path, table: Path, facts: Mapping[str, object], fresh: bool) -> None:
        self.csv, self.table = csv, table
        self._facts = {**facts, "kernels": tables.kernels()}
        self._others = self._read_table()
        self.rows: list[Row] = [] if fresh else self._read_csv()
        self._write()

    def is_done(self, bucket: Bucket) -> bool:
        """Whether there are rows of a bucket."""
        return any(row["bucket"] == bucket.name() for row in self.rows)

    def add(self, bucket: Bucket, found: Iterable[Row]) -> None:
        """Keep the rows of a bucket."""
        self.rows += [{"bucket": bucket.name(), **row, **self._facts} for row in found]
        self._write()

    def best(self) -> dict[str, dict[str, int]]:
        """The best configuration of each bucket, by its name."""
        return {row["bucket"]: config_of(row) for row in self.rows if row["is_best"]}

    def _write(self) -> None:
        partial = self.csv.with_name(f"{self.csv.name}.partial")  # a run may be killed while it writes
        try:
            for folder in (self.csv.parent, self.table.parent):  # before hours of timing
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
            pd.DataFrame(self.rows, columns=COLUMNS).to_csv(partial, index=False, float_format="%.7g")
            partial.replace(self.csv)
            if best := self.best():
                table = tables.Table(self._facts["device"], tables.kernels(), {**self._others, **best})
                tables.write(self.table, table)
        except OSError as error:
            reason = f"{error.filename or self.csv} cannot be written: {error.strerror}"
            raise UsageError(f"{reason}; expected --out and --table in writable directories") from None

    def _read_table(self) -> dict[str, Any]:
        """The configurations that the table has for these kernels; older ones are not kept."""
        try:
            table = tables.read(self.table, self._facts["device"])
        except tables.TableError as error:
            raise UsageError(f"--table: {self.table} is not overwritten: {error}; remove it") from None
        return table.configs if table is not None and table.kernels == tables.kernels() else {}

    def _read_csv(self) -> list[Row]:
        if not self.csv.exists():
            return []
        kinds = {**dict.fromkeys(COLUMNS, str), **dict.fromkeys(CONFIG_KEYS, int)}
        kinds |= {**dict.fromkeys(NUMBERS, float), "is_best": bool, "is_default": bool}
        blanks = dict.fromkeys(NUMBERS, "")
        try:
            table = pd.read_csv(self.csv, dtype=kinds, keep_default_na=False, na_values=blanks)
            if list(table.columns) != COLUMNS:
                raise ValueError("other columns, as of another version")
            for name in ("device", "torch", "triton", "kernels"):
                if others := set(table[name]) - {str(self._facts[name])}:
                    raise ValueError(f"measured with {name} {', '.join(others)}, this is {self._facts[name]}")
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"--out: {self.csv}: {one_line(error)}; --fresh begins again") from None
        return table.to_dict("records")
