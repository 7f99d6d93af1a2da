"""What tuning gained over the default configurations, as data and as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from perf.files import OK
from perf.tuning.fastest import LOST, WRONG, named
from perf.tuning.state import State, config_of
from stn_triton.buckets import Bucket

_MOST_LINES = 60


def gains(buckets: Iterable[Bucket], state: State) -> dict[str, Any]:
    """Per bucket the default's median over the best's, of the same rounds; and over all of them.

    ``geometric_mean`` counts the buckets where the default was the best, as 1; it is None without any bucket.
    """
    rows = []
    for bucket in buckets:
        best, default = state.best(bucket), state.default(bucket)
        if best is None:
            continue
        rows.append(
            {
                "bucket": bucket.name(),
                "default_ms": default and default["median_ms"],
                "best_ms": best["median_ms"],
                "gain": default and default["median_ms"] / best["median_ms"],
                "config": config_of(best),
                "is_default": best["is_default"],
            }
        )
    known = [row["gain"] for row in rows if row["gain"]]
    return {
        "buckets": rows,
        "geometric_mean": statistics.geometric_mean(known) if known else None,
        "default_best": sum(row["is_default"] for row in rows),
    }


def faults(buckets: Iterable[Bucket], state: State) -> tuple[list[str], int]:
    """Wrong results and launches that broke the GPU, in words; and how many other configurations failed."""
    rows = [row for bucket in buckets for row in state.rows.get(bucket, []) if row["status"] != OK]
    grave = [row for row in rows if row["status"].startswith((WRONG, LOST))]
    told = [f"{row['bucket']} with {named(config_of(row))}: {row['status']}" for row in grave]
    return told, len(rows) - len(grave)


def printed(found: dict[str, Any]) -> str:
    """The table of gains, the largest first, and what they come to."""
    rows = sorted(found["buckets"], key=lambda row: (row["is_default"], -(row["gain"] or 1)))
    width = max((len(row["bucket"]) for row in rows), default=6)
    lines = [f"{'bucket':{width}}  default ms   best ms    gain  best"] if rows else []
    for row in rows[:_MOST_LINES]:
        default = f"{row['default_ms']:10.4f}" if row["default_ms"] else f"{'failed':>10}"
        gain = f"{row['gain']:6.2f}x" if row["gain"] else " " * 7
        best = "the default" if row["is_default"] else named(row["config"])
        lines.append(f"{row['bucket']:{width}}  {default}{row['best_ms']:10.4f} {gain}  {best}")
    if len(rows) > _MOST_LINES:
        lines.append(f"... and {len(rows) - _MOST_LINES} more, in tuning.csv")
    if found["geometric_mean"]:
        mean, best = found["geometric_mean"], found["default_best"]
        lines += ["", f"gain over the default: {mean:.3f}x, the geometric mean over buckets ({len(rows)})"]
        lines.append(f"buckets where the default was the best, or as good within noise: {best}")
    return "\n".join(lines)
