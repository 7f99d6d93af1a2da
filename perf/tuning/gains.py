"""The gain of tuning over the default configurations, as data and as text."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from perf.files import OK, geometric_mean
from perf.tuning.fastest import LOST, WRONG, named
from perf.tuning.state import Keeper
from stn_triton.buckets import Bucket
from stn_triton.policy import CONFIG_KEYS

_MOST_LINES = 60


def gains(buckets: Iterable[Bucket], keeper: Keeper) -> pd.DataFrame:
    """A row per bucket that is done: ms of the default and of the best, their ratio, the best block sizes."""
    rows = keeper.rows[keeper.rows["bucket"].isin([bucket.name() for bucket in buckets])]
    best = rows[rows["is_best"].astype(bool)].set_index("bucket")
    default = rows[rows["is_default"].astype(bool)].set_index("bucket")["median_ms"]
    table = pd.DataFrame({"default_ms": default.reindex(best.index), "best_ms": best["median_ms"]})
    table["gain"] = table["default_ms"] / table["best_ms"]
    table["config"] = best[list(CONFIG_KEYS)].to_dict("records")
    table["is_default"] = best["is_default"].astype(bool)
    return table.reset_index()


def faults(buckets: Iterable[Bucket], keeper: Keeper) -> tuple[list[str], int]:
    """Describe wrong results and launches that broke the GPU; and count other configurations that failed."""
    rows = keeper.rows[keeper.rows["bucket"].isin([bucket.name() for bucket in buckets])]
    rows = rows[rows["status"] != OK].to_dict("records")
    grave = [row for row in rows if row["status"].startswith((WRONG, LOST))]
    lines = [
        f"{row['bucket']} with {named({k: row[k] for k in CONFIG_KEYS})}: {row['status']}" for row in grave
    ]
    return lines, len(rows) - len(grave)


def printed(table: pd.DataFrame) -> str:
    """The table of gains, the largest first, and their mean."""
    if table.empty:
        return "no bucket has a time"
    shown = table.sort_values("gain", ascending=False).head(_MOST_LINES)
    shown = shown.assign(best=shown["config"].map(named).mask(shown["is_default"], "the default"))
    text = shown[["bucket", "default_ms", "best_ms", "gain", "best"]].to_string(
        index=False, float_format="%.4f", na_rep="failed"
    )
    count, mean = len(table), geometric_mean(table["gain"])
    more = [f"... and {count - len(shown)} more, in tuning.csv"] if count > len(shown) else []
    gain = f"\ngain over the default: {mean:.3f}x, the geometric mean over buckets ({count})"
    ties = f"buckets where the default was the best, or as good within noise: {table['is_default'].sum()}"
    return "\n".join((text, *more, gain, ties))
