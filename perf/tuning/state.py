"""What was timed so far, in a CSV that a later run goes on from: a row per bucket and configuration."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from perf.tuning.fastest import LOST, Effort, Result
from stn_triton import tables, tuning
from stn_triton.buckets import Bucket
from stn_triton.policy import CONFIG_KEYS
from stn_triton.tuning import Config

Row = dict[str, Any]
Facts = Mapping[str, object]

IDENTITY = ("device", "torch", "triton", "kernels")
"""Timings are worth going on from only where all of these are the same."""
_TIMES = ("q20_ms", "median_ms", "q80_ms")
_FLAGS = ("is_default", "is_best")
_TEXTS = ("bucket", "status", "commit", "date", *IDENTITY)
COLUMNS = [
    *("bucket", *Bucket._fields, *CONFIG_KEYS, *_TIMES, *_FLAGS, "status"),
    *("device", "torch", "triton", "commit", "date", "kernels"),
]


def config_of(row: Row) -> Config:
    """The configuration of a row."""
    return {key: row[key] for key in CONFIG_KEYS}


class State:
    """The rows of a file and those added since, by bucket."""

    def __init__(self, path: Path, facts: Facts) -> None:
        self.path = path
        self._facts = {**facts, "kernels": tables.kernels()}
        self.rows: dict[Bucket, list[Row]] = {}

    def open(self, fresh: bool) -> str:
        """Take over what the file has for this machine; another's, and any if ``fresh``, is set aside.

        Returns:
            What was set aside and why, in words; nothing if nothing was.

        Raises:
            OSError: the file can be neither read nor set aside.
        """
        if not self.path.exists():
            return ""
        try:
            found = self._read()
        except ValueError as error:
            return f"{self.path} {error}: set aside as {self._set_aside().name}"
        if fresh:
            return f"--fresh: {self.path} is set aside as {self._set_aside().name}"
        self.rows = found
        return ""

    def add(self, bucket: Bucket, results: Iterable[Result]) -> None:
        """What was found for a bucket, in place of what was known of it."""
        fixed = {key: self._facts[key] for key in COLUMNS if key in self._facts}
        self.rows[bucket] = [
            {
                "bucket": bucket.name(),
                **bucket._asdict(),
                **result.config,
                **dict(zip(_TIMES, result.quantiles or (float("nan"),) * 3, strict=True)),
                "is_default": result.is_default,
                "is_best": result.is_best,
                "status": result.status,
                **fixed,
            }
            for result in results
        ]

    def save(self) -> None:
        """Write all rows.

        Raises:
            OSError: they cannot be written; the file is as it was.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(itertools.chain.from_iterable(self.rows.values()), columns=COLUMNS)
        partial = self.path.with_name(f"{self.path.name}.partial")  # a run may be killed while it writes
        try:
            table.to_csv(partial, index=False, float_format="%.7g")
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)

    def is_done(self, bucket: Bucket, configs: Sequence[Config]) -> bool:
        """Whether all these configurations were tried and there is nothing more to find."""
        rows = self.rows.get(bucket, [])
        tried = [config_of(row) for row in rows]
        is_whole = self.best(bucket) is not None and all(config in tried for config in configs)
        return is_whole or self.was_lost(bucket)

    def was_lost(self, bucket: Bucket) -> bool:
        """Whether one of its configurations broke the GPU's context: trying again would do it again."""
        return any(row["status"].startswith(LOST) for row in self.rows.get(bucket, []))

    def best(self, bucket: Bucket) -> Row | None:
        """The row of the fastest configuration."""
        rows = (row for row in self.rows.get(bucket, []) if row["is_best"])
        return next((row for row in rows if row["median_ms"] > 0), None)

    def default(self, bucket: Bucket) -> Row | None:
        """The row of the default, if it was timed."""
        rows = (row for row in self.rows.get(bucket, []) if row["is_default"])
        return next((row for row in rows if row["median_ms"] > 0), None)

    def _read(self) -> dict[Bucket, list[Row]]:
        """The rows of the file.

        Raises:
            ValueError: they are none, or another machine's; the message follows the file's name.
        """
        try:
            missing = {name: [""] for name in _TIMES}
            text = dict.fromkeys(_TEXTS, str)
            table = pd.read_csv(self.path, dtype=text, keep_default_na=False, na_values=missing)
        except (ValueError, OSError) as error:
            raise ValueError(f"cannot be read ({type(error).__name__})") from error
        if list(table.columns) != COLUMNS:
            raise ValueError("has other columns, as from an older version")
        kinds = {
            **dict.fromkeys(CONFIG_KEYS, "i"),
            **dict.fromkeys(_TIMES, "f"),
            **dict.fromkeys(_FLAGS, "b"),
        }
        wrong = [name for name, kind in kinds.items() if len(table) and table[name].dtype.kind != kind]
        if wrong:
            raise ValueError(f"is corrupt in column {wrong[0]}")
        for name in IDENTITY:
            others = set(table[name]) - {str(self._facts[name])}
            if others:
                ours, theirs = self._facts[name], ", ".join(sorted(others))
                raise ValueError(f"was measured with {name} {theirs}, this is {ours}")
        found: dict[Bucket, list[Row]] = {}
        for row in table.to_dict("records"):
            entry = tuning.checked(row["bucket"], config_of(row))
            if entry is None or any(row[key] != value for key, value in entry[0]._asdict().items()):
                raise ValueError(f"is corrupt in the row of {row['bucket'][:60]!r}")
            found.setdefault(entry[0], []).append(row)
        return found

    def _set_aside(self) -> Path:
        """Rename the file to a name that is free."""
        names = (self.path.with_name(f"{self.path.name}.old-{i}") for i in itertools.count(1))
        free = next(name for name in names if not name.exists())
        return self.path.rename(free)


class Keeper:
    """Keeps what was found, in the CSV and the table; a place that cannot be written costs a message."""

    def __init__(
        self, csv: Path, table: Path, facts: Facts, effort: Effort, say: Callable[[str], None]
    ) -> None:
        self.state = State(csv, facts)
        self.table = table
        self.configs: dict[Bucket, Config] = {}
        """What belongs into the table: the best of the buckets that are done."""
        self.unwritten: dict[Path, str] = {}
        """Why what is there now is not all."""
        self._device = facts["device"]
        self._effort = effort
        self._say = say

    def open(self, fresh: bool) -> None:
        """Take over what an earlier run left, and say what cannot be."""
        try:
            set_aside = self.state.open(fresh)
        except OSError as error:
            set_aside = f"{self.state.path} cannot be used: {error}"
        if set_aside:
            self._say(set_aside)
        for bucket in self.state.rows:
            self._choose(bucket)
        self._write()

    def is_done(self, bucket: Bucket) -> bool:
        """Whether nothing is left to do for a bucket."""
        return bucket in self.state.rows and self.state.is_done(bucket, self._effort.configs_of(bucket))

    def add(self, bucket: Bucket, results: list[Result]) -> None:
        """Keep what was found for a bucket."""
        self.state.add(bucket, results)
        self._choose(bucket)
        self._write()

    def text(self) -> str:
        """The table as it would be written."""
        return tables.dumps(self._whole())

    def _whole(self) -> tables.Table:
        """What was found, and what the table that is there has for other buckets and these kernels."""
        found = {bucket.name(): config for bucket, config in self.configs.items()}
        with contextlib.suppress(tables.TableError):
            there = tables.read(self.table, self._device)
            if there is not None and there.kernels == tables.kernels():
                good, _ = there.parsed(tuning.checked)
                found = {**{bucket.name(): config for bucket, config in good.items()}, **found}
        return tables.Table(self._device, tables.kernels(), found)

    def _choose(self, bucket: Bucket) -> None:
        best = self.state.best(bucket)
        if best is not None and self.is_done(bucket):
            self.configs[bucket] = config_of(best)

    def _write(self) -> None:
        if self.state.rows:
            self._attempt(self.state.path, self.state.save)
        if self.configs:
            self._attempt(self.table, lambda: tables.write(self.table, self._whole()))

    def _attempt(self, path: Path, write: Callable[[], None]) -> None:
        try:
            write()
            self.unwritten.pop(path, None)
        except OSError as error:
            if path not in self.unwritten:
                self._say(f"{path} cannot be written, going on without it: {error}")
            self.unwritten[path] = str(error)
