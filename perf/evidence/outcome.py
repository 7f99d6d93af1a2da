"""What the evidence comes to, on one screen: right or wrong, then the ratios, then what was not reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from perf import UsageError, files, setting
from perf.evidence.agenda import FAULTS
from perf.evidence.conductor import DONE, ENDED, NOT_REACHED
from perf.evidence.stage import Record
from perf.files import EAGER, FAILED, OPERATOR, geometric_mean, timed
from perf.measuring.results import CELL
from perf.measuring.suite import one_line
from stn_triton import tables

COMPARING = ("compare", "behaviour", "check", "tests")
JUDGING = ("compile", *COMPARING, "backward", "speed", "torch-compile", "further", "blocks")
"""Steps whose records say whether the operator is right; the others are tools."""
RIGHT, NOTHING = "RIGHT", "NOTHING COMPARED"
FAULTY = tuple(step.name for step in FAULTS)
_WELL = (DONE, ENDED, NOT_REACHED)
_MOST_NAMED = 8
SCATTER, BACKWARD = "scatter", "backward-"
"""The provider, and how workloads begin, of gather against scatter."""


def text(results: Record, table: pd.DataFrame | None) -> str:
    """The whole summary, as paragraphs; ``table`` has the rows of the CSV, if there are any."""
    parts = [_head(results), _verdict(results)]
    for part in (
        lambda: _speeds(table, results["rehearsal"]),
        lambda: _host(results),
        lambda: _kernels(results),
    ):
        try:
            parts += part()
        except Exception as error:  # a table that nobody thought of must not cost the verdict
            parts.append(f"not shown: {one_line(error)}")
    return "\n\n".join([*parts, _unreached(results)])


def rows(out: Path) -> pd.DataFrame | None:
    """The rows that a run left in its directory; None if it has none."""
    try:
        return files.read_speed(out / "speed.csv")
    except UsageError:
        return None


def wrong(results: Record) -> list[tuple[str, Record]]:
    """What the operator or the compiler does wrong: the step and the record of each."""
    steps = results["steps"].items()
    return [(n, r) for n, step in steps if n in JUDGING for r in step["records"] if not r["ok"]]


def broken(results: Record) -> list[str]:
    """Steps that ended otherwise than by their time, and parts of others that failed, in words."""
    found = []
    for name, step in results["steps"].items():
        if name in FAULTY:
            continue
        if step["status"] not in _WELL:
            found.append(f"{name}: {step['status']}")
        if name not in JUDGING:
            found += [f"{name}: {_title(r)}: {r.get('problem')}" for r in step["records"] if not r["ok"]]
    return found


def is_right(results: Record) -> bool:
    """Whether nothing is wrong, no step broke, and something was compared if that was asked for."""
    word = _word(results)
    is_asked = any(name in results["steps"] for name in COMPARING)
    return word == RIGHT or (word == NOTHING and not is_asked)


def _word(results: Record) -> str:
    if not results["machine"]:
        return "NO MACHINE"
    if wrong(results):
        return "WRONG"
    if broken(results):
        return "BROKEN"
    steps = results["steps"]
    return RIGHT if any(steps[name]["records"] for name in COMPARING if name in steps) else NOTHING


def _title(record: Record) -> str:
    return record.get("what") or record.get("kernel") or record.get("bucket") or record["item"]


def _head(results: Record) -> str:
    machine = results["machine"]
    if not machine:
        return "no machine was found; evidence.log says more"
    copy = machine.get("copy_gb_per_s")
    lines = [setting.summary(machine)]
    lines.append(f"copy bandwidth {copy:,.0f} GB/s" if copy else "copy bandwidth unknown")
    if results["rehearsal"]:
        lines.append(
            "A REHEARSAL: kernels interpreted on a CPU, tiny workloads; no time here means anything."
        )
    return "\n".join(lines)


def _verdict(results: Record) -> str:
    """In a word; how many comparisons passed; what is wrong or broke."""
    counts = []
    for name in COMPARING:
        step = results["steps"].get(name)
        if step and step["records"]:
            passed = sum(record["ok"] for record in step["records"])
            cut = " (its time ended)" if ENDED in step["status"] else ""
            counts.append(f"{name} {passed} of {step['planned'] or len(step['records'])}{cut}")
    found = [f"{name}: {_title(r)}: {r.get('problem') or r.get('status', '')}" for name, r in wrong(results)]
    found += broken(results)
    lines = [_word(results) + (f"; passed: {', '.join(counts)}" if counts else "")]
    lines += [f"  {line}" for line in found[:_MOST_NAMED]]
    if len(found) > _MOST_NAMED:
        lines.append(f"  and {len(found) - _MOST_NAMED} more, in evidence.json")
    return "\n".join(lines)


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """The operator's rows, and how many times faster it is than each rival; ``_graph`` of replays.

    Without the rows that hold gather against scatter.
    """
    times = table[timed(table) & ~_is_backward(table)]
    ours = times[times["provider"] == OPERATOR].drop_duplicates(CELL, keep="last")
    for rival in dict.fromkeys([EAGER, *times["provider"]]):
        theirs = times[times["provider"] == rival].drop_duplicates(CELL, keep="last")
        both = ours[CELL].merge(theirs[[*CELL, "median_ms", "graph_ms"]], on=CELL, how="left")
        ours = ours.assign(
            **{
                rival: both["median_ms"].to_numpy() / ours["median_ms"].to_numpy(),
                f"{rival}_graph": both["graph_ms"].to_numpy() / ours["graph_ms"].to_numpy(),
            }
        )
    return ours


def backwards(table: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds of a backward with both gradients: a row per workload and map, a column per provider.

    That is, forward and backward less the forward: of replays, without the host's time, if the operator
    has them. A rival has none where it takes so long that the host's time does not count.
    """
    times = table[timed(table) & _is_backward(table)].drop_duplicates([*CELL, "provider"], keep="last")
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for (workload, map_name), rows in times.groupby(["workload", "map"], sort=False):
        ms = {
            column: rows.pivot(index="provider", columns="pass", values=column)
            .reindex(columns=["forward+backward", "forward"])
            .agg(lambda row: row.iloc[0] - row.iloc[1], axis=1)
            for column in ("graph_ms", "median_ms")
        }
        has_replays = pd.notna(ms["graph_ms"].get(OPERATOR))
        chosen = ms["graph_ms"].fillna(ms["median_ms"]) if has_replays else ms["median_ms"]
        cells[str(workload), str(map_name)] = chosen.to_dict()
    rows = [{"workload": name, "map": map_name, **ms} for (name, map_name), ms in cells.items()]
    return pd.DataFrame(rows, columns=["workload", "map", OPERATOR, SCATTER, EAGER]).dropna(subset=[OPERATOR])


def _is_backward(table: pd.DataFrame) -> pd.Series:
    return table["workload"].str.startswith(BACKWARD)


def _speeds(table: pd.DataFrame | None, is_rehearsal: bool) -> Iterator[str]:
    """The table of ratios against PyTorch, then gather against scatter."""
    if table is None or not timed(table).any():
        yield "nothing was timed"
        return
    main = ratios(table)
    if len(main):
        lines = []
        for (workload, pass_name), group in main.groupby(["workload", "pass"], sort=False):
            line = {
                "workload": workload,
                "pass": pass_name,
                "ms": f"{geometric_mean(group['median_ms']):.4f}",
            }
            line |= {title: _times(group, name) for name, title in _RIVALS}
            line["roofline"] = _share(group["roofline"])
            lines.append(line)
        slower = main[main[EAGER] < 1].sort_values(EAGER)
        named = slower[[*CELL, EAGER]].to_numpy().tolist()
        losses = [f"  {' '.join(where)} {ratio:.2f}x" for *where, ratio in named[:_MOST_NAMED]]
        if len(named) > _MOST_NAMED:
            losses.append(f"  and {len(named) - _MOST_NAMED} more")
        count = f"slower than the eager pair in {len(slower)} of {main[EAGER].notna().sum()} rows"
        yield "\n".join(
            (
                pd.DataFrame(lines).to_string(index=False),
                "ms: a call of the operator. 2.00x: the operator is twice as fast as F.affine_grid, then",
                "F.grid_sample (eager); that in CUDA graphs; with align_corners (corners); with a broadcast",
                "grid; torch.compile. Geometric means over the maps. roofline: of the copy bandwidth.",
                *([] if is_rehearsal else [count, *losses, *_memory(table)]),
            )
        )
    failed = table[(table["status"] == FAILED) & (table["provider"] != OPERATOR)]
    if len(failed):
        names = failed["provider"] + " on " + failed["workload"] + " " + failed["map"] + " " + failed["pass"]
        yield f"rivals that failed their check: {'; '.join(names)}"
    gathers = backwards(table)
    if len(gathers):
        shown = gathers[["workload", "map"]].assign(
            **{"operator ms": gathers[OPERATOR].map("{:.4f}".format)},
            **{name: (gathers[name] / gathers[OPERATOR]).map("{:.2f}x".format) for name in (SCATTER, EAGER)},
        )
        yield "\n".join(
            (
                shown.to_string(index=False),
                "Both gradients: the time of each way over the operator's, which gathers, but for volumes.",
                "Above 1 the operator is faster. Of CUDA graphs where calls are short: without the host.",
            )
        )


def _memory(table: pd.DataFrame) -> Iterator[str]:
    """The range of peak memory over the workloads, where it was measured."""
    rows = table[timed(table) & ~_is_backward(table)].drop_duplicates([*CELL, "provider"], keep="last")
    peaks = rows.pivot(index=CELL, columns="provider", values="peak_mib").reindex(columns=[OPERATOR, EAGER])
    shares = (peaks[OPERATOR] / peaks[EAGER]).dropna()
    if len(shares):
        yield f"peak memory of a call: {shares.min():.0%} to {shares.max():.0%} of the eager pair's"


_RIVALS = (
    (EAGER, "eager"),
    (f"{EAGER}_graph", "in graphs"),
    ("eager-corners", "corners"),
    ("eager-broadcast", "broadcast"),
    ("compile", "compile"),
)


def _times(rows: pd.DataFrame, column: str) -> str:
    known = column in rows and rows[column].notna().any()
    return f"{geometric_mean(rows[column]):.2f}x" if known else "-"


def _share(values: pd.Series) -> str:
    return f"{geometric_mean(values):.0%}" if values.notna().any() else "-"


def _host(results: Record) -> Iterator[str]:
    """The host's time of a call, and first calls."""
    lines = []
    for record in results["steps"].get("host", {"records": []})["records"]:
        if "microseconds" in record:
            ours, pair = (record["microseconds"].get(n, {}) for n in ("affine_grid_sample", "eager pair"))
            each = ", ".join(f"{name} {us:.0f} ({pair[name]:.0f})" for name, us in ours.items())
            lines.append(f"host time of a call in microseconds, operator (eager pair): {each}")
        elif "first_backward_s" in record:
            first = sum(record[f"first_{part}_s"] for part in ("forward", "backward"))
            second = sum(record[f"second_{part}_s"] for part in ("forward", "backward"))
            lines.append(
                f"{record['what']}, forward and backward: {first:.1f} s, the second {1e3 * second:.1f} ms"
            )
        elif "over" in record:
            lines.append(f"{record['what']}: no result after {record['over']:.0f} s")
    if lines:
        yield "\n".join(lines)


def _kernels(results: Record) -> Iterator[str]:
    """Compilation, block sizes, and what the profiler saw, a line each."""
    steps = results["steps"]
    lines = []
    compiled = [r for r in steps.get("compile", {"records": []})["records"] if "seconds" in r]
    if compiled:
        spilling = sum(bool(record.get("spills")) for record in compiled)
        total = sum(record["seconds"] for record in compiled)
        most = max((r["seconds"] for r in compiled if "registers" in r), default=0)
        count = sum(record["kernels"] for record in compiled)
        lines.append(
            f"{count} kernels compiled, {total:.0f} s of processor time, longest {most:.0f} s; "
            f"{spilling} spill registers"
        )
    blocks = [r for r in steps.get("blocks", {"records": []})["records"] if r.get("best_ms")]
    for record in blocks:
        gain = record["default_ms"] / record["best_ms"] if record["default_ms"] else float("nan")
        if gain > 1.05:
            lines.append(f"{record['bucket']}: {gain:.2f}x by {record['best']}")
    if blocks:
        table = f"{tables.slug(results['machine']['device'])}.json"
        lines.append(f"block sizes of {len(blocks)} kinds of launches timed; any other gain is below 5 %")
        lines.append(f"to use them in a checkout: cp block-sizes.json stn_triton/tuned/{table}")
    tools = [r["problem"] for r in steps.get("profile", {"records": []})["records"] if r.get("problem")]
    lines += [f"profile: {problem}" for problem in tools]
    if lines:
        yield "\n".join(lines)


def _unreached(results: Record) -> str:
    """What the time did not suffice for, and what broke."""
    lines, never = [], []
    for name, step in results["steps"].items():
        if step["status"] == NOT_REACHED:
            never.append(name)
        elif step["status"] != DONE:
            left = f"; without {', '.join(step['left'])}" if step["left"] else ""
            planned = " (as it should: a rehearsal of failures)" if name in FAULTY else ""
            lines.append(f"  {name}: {step['status']}{left}{planned}")
    lines += [f"  not begun: {', '.join(never)}"] if never else []
    used = f"{results.get('seconds_used', 0):.0f} of {results['seconds']:.0f} s used"
    return "\n".join([f"cut or broken ({used}):", *lines] if lines else [f"all was reached, {used}"])
