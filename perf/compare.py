"""``python -m perf compare``: what became faster or slower between two result files, beyond the noise.

The change of a row is its median after over its median before. Providers take turns within a run, so the
eager pair of the same workload, map and pass shows whether the machine drifted. Where its 20 to 80 %
intervals do not overlap, its change is taken out of the other rows, whose intervals widen by its noise.
"""

import argparse
import json
import math
import sys

import numpy as np
import pandas as pd

from perf import EXIT_FAILED, EXIT_OK, UsageError, files
from perf.files import EAGER, FAILED, FEW_SAMPLES, KEY, OPERATOR, Run

_SHOWN = ["verdict", "workload", "map", "pass", "provider"]
_SHOWN += ["before_ms", "after_ms", "change", "drift", "reason"]
_VERDICTS = ["broke", "slower", "unclear", "gone", "new", "fixed", "faster", "same"]  # the worst first
_MOST_DRIFT = 1.5  # a larger factor comes from a disturbed measurement


def main(args: argparse.Namespace) -> int:
    """Print what changed, the worst first; 1 if a row of the operator became slower or wrong."""
    if not (math.isfinite(args.threshold) and args.threshold >= 0):
        raise UsageError(f"--threshold: {args.threshold}; expected a share of 0 or more, such as 0.05")
    before, after = files.read_run(args.before), files.read_run(args.after)
    warnings = [
        f"{name}: {before.facts[name] or 'unknown'} before, {after.facts[name] or 'unknown'} after"
        for name in ("quick", "device", "driver", "toolkit", "cpu", "threads", "python", "torch", "triton")
        if before.facts[name] != after.facts[name]
    ]
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    found = compare(before, after, args.threshold)
    if found["change"].isna().all() and "broke" not in set(found["verdict"]):
        expected = "expected the same workloads, both quick or none"
        raise UsageError(f"{args.before} and {args.after}: no row has a time in both; {expected}")
    own = found.loc[found["provider"] == OPERATOR, "verdict"]
    counts = own.value_counts().to_dict()
    if args.json:
        facts = {"before": before.facts, "after": after.facts, "threshold": args.threshold}
        rows = json.loads(found.to_json(orient="records"))
        print(json.dumps({**facts, "warnings": warnings, "operator": counts, "rows": rows}, indent=1))
    else:
        changed = found[(found["verdict"] != "same") & (found["provider"] == OPERATOR)]
        table = changed.to_string(index=False, na_rep="", float_format="%.4g", max_colwidth=60)
        legend = "change: after / before, without the drift; drift: after / before of the eager pair"
        print(f"{table}\n{legend}" if len(changed) else "no row of the operator changed beyond the noise")
        print("operator:", ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return EXIT_FAILED if own.isin(["slower", "broke"]).any() else EXIT_OK


def compare(before: Run, after: Run, threshold: float) -> pd.DataFrame:
    """Judge each row that has a time before or after; the worst comes first.

    The medians must differ by more than the share ``threshold``, and the 20 to 80 % intervals not overlap.
    """
    both = before.rows.merge(after.rows, "outer", KEY, suffixes=("_before", "_after"))
    # The change of the medians, between the least and the largest that the two intervals allow.
    both["least"] = both["q20_ms_after"] / both["q80_ms_before"]
    both["change"] = both["median_ms_after"] / both["median_ms_before"]
    both["most"] = both["q80_ms_after"] / both["q20_ms_before"]
    least, drift, most = (files.value_of(both, EAGER, name) for name in ("least", "change", "most"))
    is_drift = (least > 1) | (most < 1)
    # With another PyTorch the eager pair is another one, and shows no drift.
    is_drift &= (both["provider"] != EAGER) & (before.facts["torch"] == after.facts["torch"])
    both["drift"] = drift.where(is_drift)
    both["change"] /= drift.where(is_drift, 1)
    is_slower = (both["change"] > 1 + threshold) & (both["least"] > most.where(is_drift, 1))
    is_faster = (both["change"] < 1 / (1 + threshold)) & (both["most"] < least.where(is_drift, 1))
    is_few = both[["samples_before", "samples_after"]].min(axis=1) < FEW_SAMPLES
    is_odd = is_drift & ~drift.between(1 / _MOST_DRIFT, _MOST_DRIFT)
    had, has = both["median_ms_before"].notna(), both["median_ms_after"].notna()
    conditions = {
        "broke": (both["status_after"] == FAILED) & (both["status_before"] != FAILED),
        "gone": had & ~has,
        "fixed": has & (both["status_before"] == FAILED),
        "new": has & ~had,
        "unclear": ((is_slower | is_faster) & is_few) | is_odd,
        "slower": is_slower,
        "faster": is_faster,
    }
    both["verdict"] = np.select(list(conditions.values()), list(conditions), "same")
    names = {"median_ms_before": "before_ms", "median_ms_after": "after_ms", "reason_after": "reason"}
    both = both.rename(columns=names)
    both["rank"] = both["verdict"].map(_VERDICTS.index) * 2 + (both["provider"] != OPERATOR)
    is_shown = had | has | (both["verdict"] == "broke")
    return both[is_shown].sort_values(["rank", "change"], ascending=[True, False])[_SHOWN]
