"""``python -m perf compare``: what became faster or slower between two result files, beyond the noise.

A row is matched with the one of the same workload, map, pass, provider, shape, dtype, layout and size (by
those of them that both files have). Its *change* is the median after over the median before. It is

    slower   if the 20 to 80 % interval after lies above the one before, and the change is over 1 + threshold;
    faster   if it lies below, and the change is under 1 / (1 + threshold);
    same     if neither: within the noise, or too small to matter;
    unclear  if it cannot be told: the eager pair drifted too far (below), or the row would be slower or
             faster by fewer than 10 samples before or after;
    broke    if it had a time and FAILED now;    fixed   the other way round;
    gone     if it had a time and has none now, for another reason;    new   the other way round.

Providers take turns within a run, so what slows the machine down slows all of them; and the eager pair, which
no commit of ours changes, shows it. Where the eager pair's own intervals of a workload, map and pass do not
overlap, the machine drifted there. The drift is the change of the eager pair's median, and the other rows of
the cell are judged by what is left: their median after is divided by the drift, and the ends of their
interval by the ends of the drift's, so that it becomes wider by the eager pair's noise. So a throttled GPU
makes no row slower, and a faster one hides no regression. The eager pair's own rows are judged as they are.
A drift of more than 1.5x either way is no machine's, but an outlier of the eager pair or a disturbed cell:
it could hide a regression, so it is not taken out, and the other rows of that cell are unclear. Nothing that
is unclear fails the command.
With another PyTorch the eager pair is another one, and no yardstick: then all rows are judged as they are,
with a warning.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from perf import EXIT_FAILED, EXIT_OK, UsageError, files
from perf.files import EAGER, FAILED, KEY, OPERATOR, Run

VERDICTS = ("broke", "slower", "unclear", "gone", "new", "fixed", "faster", "same")
"""From the worst to the one that needs no reading."""
BROKE, SLOWER, UNCLEAR, GONE, NEW, FIXED, FASTER, SAME = VERDICTS
MOST_DRIFT = 1.5
"""Beyond this factor, either way, the eager pair is no yardstick."""
FEWEST_SAMPLES = 10
"""With fewer, the quantiles are no measure of the noise."""
_LINES = 40
_NUMBERS = ("before ms", "after ms", "after, corrected", "change", "drift")
_DIFFERENT = ("driver", "toolkit", "cpu", "threads", "python", "torch", "triton")
"""Facts whose change is worth a word; the device's is worth a loud one."""


@dataclass(frozen=True)
class Change:
    """What became of one row."""

    workload: str
    map: str
    passed: str
    provider: str
    verdict: str
    before_ms: float | None
    after_ms: float | None
    change: float | None
    """Median after over median before; without the drift, where it was taken out."""
    drift: float | None
    """What the eager pair became slower by, where that was beyond its noise; else None."""
    corrected_ms: float | None
    """The median after over the drift, where it was taken out; else None."""
    reason: str
    """What the file says of a row that has no time any more; what makes a row unclear."""


@dataclass(frozen=True)
class Comparison:
    """What became of all rows, the worst first."""

    changes: list[Change]
    untimed: int
    """Rows that have a time neither before nor after."""
    drifts: list[float]
    """The drift of each workload, map and pass where the machine drifted."""

    def summary(self) -> dict[str, object]:
        """Rows by verdict; then cells that drifted and their median drift."""
        counts = {"operator": dict.fromkeys(VERDICTS, 0), "others": dict.fromkeys(VERDICTS, 0)}
        for change in self.changes:
            counts["operator" if change.provider == OPERATOR else "others"][change.verdict] += 1
        drift = statistics.median(self.drifts) if self.drifts else None
        return {**counts, "untimed": self.untimed, "drifted": len(self.drifts), "median_drift": drift}


@dataclass(frozen=True)
class Interval:
    """Quantiles of a time: 20, 50 and 80 %."""

    low: float
    median: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Whether the two have a time in common."""
        return self.low <= other.high and other.low <= self.high

    def over(self, other: Interval) -> Interval:
        """The quotient, as wide as the noise of both makes it."""
        return Interval(self.low / other.high, self.median / other.median, self.high / other.low)


def main(args: argparse.Namespace) -> int:
    """Print what changed, the worst first; 1 if a row of the operator became slower or broke."""
    if not (math.isfinite(args.threshold) and args.threshold >= 0):
        raise UsageError(f"--threshold: {args.threshold}; expected a share of 0 or more, such as 0.05")
    before, after = _only_run(args.before), _only_run(args.after)
    warned = list(warnings(before, after))
    for line in warned:
        print(f"warning: {line}", file=sys.stderr)
    found = compare(before, after, args.threshold)
    if not any(change.before_ms and change.after_ms for change in found.changes):
        raise UsageError(
            f"{args.before} and {args.after}: no row has a time in both; expected the same workloads, all of "
            "them --quick or none"
        )
    if args.json:
        print(json.dumps(_document(args, before, after, found, warned), indent=1, allow_nan=False))
    else:
        _print(args, before, after, found)
    worse = (c for c in found.changes if c.provider == OPERATOR and c.verdict in (SLOWER, BROKE))
    return EXIT_FAILED if any(worse) else EXIT_OK


def compare(before: Run, after: Run, threshold: float) -> Comparison:
    """What became of each row, as the head of this file defines it."""
    key = [c for c in KEY if (before.rows[c] != "").any() and (after.rows[c] != "").any()]
    was, now = (_rows(run, key) for run in (before, after))
    has_yardstick = before.facts["torch"] == after.facts["torch"]
    changes, drifts, untimed = [], {}, 0
    for name in dict.fromkeys([*was, *now]):
        old, new = was.get(name), now.get(name)
        row = new if old is None else old
        eager = tuple(EAGER if c == "provider" else row[c] for c in key)
        drift = _drift(was.get(eager), now.get(eager)) if has_yardstick else None
        if drift:
            drifts[eager] = drift.median
        own_drift = None if row["provider"] == EAGER else drift
        is_far = own_drift is not None and not 1 / MOST_DRIFT <= own_drift.median <= MOST_DRIFT
        taken_out = None if is_far else own_drift
        verdict, change = _judge(old, new, taken_out, threshold)
        if verdict is None:
            untimed += 1
            continue
        reason = "" if new is None or new["time"] else f"{new['status']}: {new['reason']}"
        if change is not None:
            doubt = _doubt(old, new, own_drift if is_far else None, verdict)
            verdict, reason = (UNCLEAR, doubt) if doubt else (verdict, reason)
        times = [None if r is None or r["time"] is None else r["time"].median for r in (old, new)]
        corrected = times[1] / taken_out.median if taken_out and change is not None else None
        names = (row["workload"], row["map"], row["pass"], row["provider"])
        changes.append(Change(*names, verdict, *times, change, drift and drift.median, corrected, reason))
    return Comparison(sorted(changes, key=_rank), untimed, list(drifts.values()))


def warnings(before: Run, after: Run) -> Iterator[str]:
    """Why the two runs cannot be compared, or only with care."""
    old, new = before.facts, after.facts
    if old["device"] != new["device"]:
        yield f"OTHER DEVICE: {old['device']!r} before, {new['device']!r} after: the times are NOT COMPARABLE"
    if before.quick != after.quick:
        quick = "before" if before.quick else "after"
        yield f"QUICK AGAINST FULL: {quick} is a quick run, of other batches: the times are NOT COMPARABLE"
    elif before.quick:
        yield "both runs are quick: small batches and few samples; a verdict is only a hint"
    for name in _DIFFERENT:
        if old[name] and new[name] and old[name] != new[name]:
            yield f"{name}: {old[name]} before, {new[name]} after"
    if old["torch"] != new["torch"]:
        yield "the eager pair is no yardstick across versions of PyTorch: no drift of the machine is removed"
    elif not (files.timed(before.rows) & (before.rows["provider"] == EAGER)).any():
        yield "no time of the eager pair before: no drift of the machine is removed"
    failed = after.rows[(after.rows["provider"] == OPERATOR) & (after.rows["status"] == FAILED)]
    if len(failed):
        yield f"{len(failed)} rows of the operator FAILED after; `broke` are those that had a time before"


def _only_run(path: Path) -> Run:
    runs = files.runs(files.read_speed(path))
    if len(runs) > 1:
        listed = "; ".join(f"{r.facts['device']} {r.facts['commit']} {r.facts['date']}" for r in runs)
        raise UsageError(f"{path}: holds {len(runs)} runs ({listed}); expected one: name its file")
    return runs[0]


def _rows(run: Run, key: list[str]) -> dict[tuple[str, ...], dict[str, object]]:
    """The rows by key, each with its ``time``: an interval, or None."""
    table = run.rows.drop_duplicates(key, keep="last")
    is_timed = files.timed(table)
    found = {}
    for row, has_time in zip(table.to_dict("records"), is_timed, strict=True):
        row["time"] = _interval(row) if has_time else None
        found[tuple(row[c] for c in key)] = row
    return found


def _interval(row: dict[str, float]) -> Interval:
    """The quantiles of a row; one that the file lacks is the median: then no noise is known."""
    median = row["median_ms"]
    low, high = (row[q] if row[q] > 0 and math.isfinite(row[q]) else median for q in ("q20_ms", "q80_ms"))
    return Interval(min(low, median), median, max(high, median))


def _drift(old: dict | None, new: dict | None) -> Interval | None:
    """The change of the yardstick, if it is beyond its noise."""
    if old is None or new is None or old["time"] is None or new["time"] is None:
        return None
    return None if new["time"].overlaps(old["time"]) else new["time"].over(old["time"])


def _doubt(old: dict, new: dict, far: Interval | None, verdict: str) -> str:
    """Why a row with two times cannot be judged, "" if it can; ``far`` is a drift too large to take out."""
    if far:
        return f"the eager pair drifted by {far.median:.3g}x: no yardstick"
    # A file that does not tell the samples has NaN, which is not fewer.
    few = [f"{row['samples']:.0f}" for row in (old, new) if row["samples"] < FEWEST_SAMPLES]
    return f"only {' and '.join(few)} samples" if few and verdict in (SLOWER, FASTER) else ""


def _judge(
    old: dict | None, new: dict | None, drift: Interval | None, threshold: float
) -> tuple[str | None, float | None]:
    """The verdict and the change; no verdict of a row without a time before and after."""
    had, has = (row is not None and row["time"] is not None for row in (old, new))
    if not had and not has:
        return None, None
    if not has:
        return (BROKE if new is not None and new["status"] == FAILED else GONE), None
    if not had:
        return (FIXED if old is not None and old["status"] == FAILED else NEW), None
    time = new["time"].over(drift) if drift else new["time"]
    change = time.median / old["time"].median
    if time.overlaps(old["time"]):
        return SAME, change
    if change > 1 + threshold:
        return SLOWER, change
    return (FASTER if change < 1 / (1 + threshold) else SAME), change


def _rank(change: Change) -> tuple[int, bool, float]:
    """The worst first: by verdict, the operator before the others, then by how much."""
    return VERDICTS.index(change.verdict), change.provider != OPERATOR, -(change.change or 0)


def _document(
    args: argparse.Namespace, before: Run, after: Run, found: Comparison, warned: list[str]
) -> dict[str, object]:
    """What ``--json`` prints."""
    rows = [
        {"pass" if name == "passed" else name: value for name, value in asdict(change).items()}
        for change in found.changes
    ]
    runs = {
        name: {"file": str(path), "quick": run.quick, **run.facts}
        for name, path, run in (("before", args.before, before), ("after", args.after, after))
    }
    return {
        **runs,
        "threshold": args.threshold,
        "warnings": warned,
        "summary": found.summary(),
        "rows": rows,
    }


def _print(args: argparse.Namespace, before: Run, after: Run, found: Comparison) -> None:
    for name, path, run in (("before", args.before, before), ("after", args.after, after)):
        facts = run.facts
        print(f"{name + ':':8}{path} ({facts['device']}, commit {facts['commit']}, {facts['date'][:10]})")
    shown = [change for change in found.changes if change.verdict != SAME]
    print("", *_columns([_line(change) for change in shown[:_LINES]]), sep="\n")
    if len(shown) > _LINES:
        print(f"and {len(shown) - _LINES} more; --json has them all")
    print("" if shown else "no row changed beyond the noise")
    summary = found.summary()
    for who in ("operator", "others"):
        counts = ", ".join(f"{n} {verdict}" for verdict, n in summary[who].items() if n)
        print(f"{who + ':':10}{counts or 'no rows'}")
    if found.untimed:
        print(f"{found.untimed} rows have a time in neither file")
    if found.drifts:
        drift = f"the eager pair: median {summary['median_drift'] - 1:+.1%}"
        print(f"the machine drifted in {len(found.drifts)} cells ({drift}); taken out of the others' change")
        far = [drift for drift in found.drifts if not 1 / MOST_DRIFT <= drift <= MOST_DRIFT]
        if far:
            print(f"but for {len(far)} of them, beyond {MOST_DRIFT}x: their other rows are unclear")


def _columns(lines: list[dict[str, str]]) -> Iterator[str]:
    """Lines of a table, the head first; numbers to the right, a column without any value left out."""
    names = [name for name in (lines[0] if lines else ()) if any(line[name] for line in lines)]
    widths = {name: max(len(name), *(len(line[name]) for line in lines)) for name in names}
    for line in [{name: name for name in names}, *lines] if lines else ():
        yield "  ".join(
            line[n].rjust(widths[n]) if n in _NUMBERS else line[n].ljust(widths[n]) for n in names
        ).rstrip()


def _line(change: Change) -> dict[str, str]:
    """A row of the printed table."""
    numbers = {
        "before ms": change.before_ms,
        "after ms": change.after_ms,
        "after, corrected": change.corrected_ms,
    }
    return {
        "verdict": change.verdict,
        "workload": change.workload,
        "map": change.map,
        "pass": change.passed,
        "provider": change.provider,
        **{name: "" if value is None else f"{value:.4g}" for name, value in numbers.items()},
        "change": "" if change.change is None else f"{change.change - 1:+.1%}",
        "drift": "" if change.drift is None else f"{change.drift - 1:+.1%}",
        "reason": change.reason if len(change.reason) <= 60 else change.reason[:59] + "…",
    }
