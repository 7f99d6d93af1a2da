"""``python -m perf compare``: what became faster or slower between two result files, beyond the noise.

The change of a row is its median after over its median before. Providers take turns within a run, so the
eager pair of the same workload, map and pass shows whether the machine drifted. Where its 20 to 80 %
intervals do not overlap, its change is taken out of the other rows, whose intervals widen by its noise.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from perf import EXIT_FAILED, EXIT_OK, UsageError, files
from perf.files import EAGER, FAILED, FEW_SAMPLES, KEY, OPERATOR, Run

_SHOWN = ["verdict", "workload", "map", "pass", "provider"]
_SHOWN += ["before_ms", "after_ms", "change", "drift", "reason"]
_VERDICTS = ["broke", "slower", "unclear", "gone", "new", "fixed", "faster", "same"]  # the worst first
_MOST_DRIFT = 1.5  # a larger factor comes from a disturbed measurement
_QUANTILES = ("q20_ms", "median_ms", "q80_ms")


def main(args: argparse.Namespace) -> int:
    """Print what changed, the worst first; 1 if a row of the operator became slower or wrong."""
    if not (math.isfinite(args.threshold) and args.threshold >= 0):
        raise UsageError(f"--threshold: {args.threshold}; expected a share of 0 or more, such as 0.05")
    before, after = _only_run(args.before), _only_run(args.after)
    warnings = list(_warnings(before, after))
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    found = compare(before, after, args.threshold)
    if found["change"].isna().all():
        expected = "expected the same workloads, both quick or none"
        raise UsageError(f"{args.before} and {args.after}: no row has a time in both; {expected}")
    own = found.loc[found["provider"] == OPERATOR, "verdict"]
    counts = own.value_counts().to_dict()
    if args.json:
        facts = {"before": before.facts, "after": after.facts, "threshold": args.threshold}
        rows = json.loads(found.to_json(orient="records"))
        print(json.dumps({**facts, "warnings": warnings, "operator": counts, "rows": rows}, indent=1))
    else:
        changed = found[found["verdict"] != "same"]
        table = changed.to_string(index=False, na_rep="", float_format="%.4g", max_colwidth=60)
        legend = "change: after / before, without the drift; drift: after / before of the eager pair"
        print(f"{table}\n{legend}" if len(changed) else "no row changed beyond the noise")
        print("operator:", ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return EXIT_FAILED if own.isin(["slower", "broke"]).any() else EXIT_OK


def compare(before: Run, after: Run, threshold: float) -> pd.DataFrame:
    """Judge each row that has a time before or after; the worst comes first.

    The medians must differ by more than the share ``threshold``, and the 20 to 80 % intervals not overlap.
    """
    key = [name for name in KEY if all((run.rows[name] != "").any() for run in (before, after))]
    both = _times(before, key).merge(_times(after, key), "outer", key, suffixes=("_before", "_after"))
    old, new = ([both[f"{name}_{when}"] for name in _QUANTILES] for when in ("before", "after"))
    eager_old, eager_new = (
        [both[f"eager_{name}_{when}"] for name in _QUANTILES] for when in ("before", "after")
    )
    is_drift = (eager_new[0] > eager_old[2]) | (eager_new[2] < eager_old[0])
    # With another PyTorch the eager pair is another one, and shows no drift.
    is_drift &= (both["provider"] != EAGER) & (before.facts["torch"] == after.facts["torch"])
    low, drift, high = ((eager_new[i] / eager_old[2 - i]).where(is_drift, 1.0) for i in range(3))
    change = new[1] / old[1] / drift
    is_slower = (change > 1 + threshold) & (new[0] / high > old[2])
    is_faster = (change < 1 / (1 + threshold)) & (new[2] / low < old[0])
    is_few = both[["samples_before", "samples_after"]].min(axis=1) < FEW_SAMPLES
    had, has = old[1].notna(), new[1].notna()
    conditions = {
        "broke": had & (both["status_after"] == FAILED),
        "gone": had & ~has,
        "fixed": has & (both["status_before"] == FAILED),
        "new": has & ~had,
        "unclear": ((is_slower | is_faster) & is_few) | ~drift.between(1 / _MOST_DRIFT, _MOST_DRIFT),
        "slower": is_slower,
        "faster": is_faster,
    }
    both["verdict"] = np.select(list(conditions.values()), list(conditions), "same")
    both = both.assign(before_ms=old[1], after_ms=new[1], change=change, drift=drift.where(is_drift))
    both["reason"] = both["reason_after"].where(~has)
    both["rank"] = both["verdict"].map(_VERDICTS.index) * 2 + (both["provider"] != OPERATOR)
    return both[had | has].sort_values(["rank", "change"], ascending=[True, False])[_SHOWN]


def _times(run: Run, key: list[str]) -> pd.DataFrame:
    """The times of each row and of its eager pair; a quantile that is lacking is the median."""
    rows = run.rows.drop_duplicates(key, keep="last")
    rows = rows.assign(**{quantile: rows[quantile].fillna(rows["median_ms"]) for quantile in _QUANTILES})
    eager = {f"eager_{quantile}": files.value_of(rows, EAGER, quantile) for quantile in _QUANTILES}
    return rows.assign(**eager)[[*key, *_QUANTILES, *eager, "samples", "status", "reason"]]


def _only_run(path: Path) -> Run:
    runs = files.runs(files.read_speed(path))
    if len(runs) > 1:
        raise UsageError(f"{path}: holds {len(runs)} runs ({', '.join(r.name for r in runs)}); expected one")
    return runs[0]


def _warnings(before: Run, after: Run) -> Iterator[str]:
    """Why the two runs cannot be compared, or only with care."""
    if before.facts["device"] != after.facts["device"] or before.quick != after.quick:
        yield "another device, or a quick run against a full one: the times are NOT COMPARABLE"
    elif before.quick:
        yield "both runs are quick: a verdict is only a hint"
    for name in ("device", "driver", "toolkit", "cpu", "threads", "python", "torch", "triton"):
        old, new = before.facts[name], after.facts[name]
        if old and new and old != new:
            yield f"{name}: {old} before, {new} after"
    failed = ((after.rows["provider"] == OPERATOR) & (after.rows["status"] == FAILED)).sum()
    if failed:
        yield f"{failed} rows of the operator FAILED after; `broke` are those that had a time before"
