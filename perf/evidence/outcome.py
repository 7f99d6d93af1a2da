"""The summary: right or wrong, how fast, and which steps were cut or broke."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from perf import setting
from perf.evidence.runner import DONE
from perf.evidence.stage import Record
from perf.files import EAGER, OPERATOR, geometric_mean, timed
from perf.measuring.results import CELL
from perf.measuring.suite import one_line
from stn_triton import tables

SCATTER, BACKWARD = "scatter", "backward-"
"""The provider that scatters, and the beginning of the names of the workloads that compare it."""
RIVALS = {
    "calls": (EAGER, "median_ms"),
    "graphs": (EAGER, "graph_ms"),
    "corners": ("eager-corners", "median_ms"),
    "broadcast": ("eager-broadcast", "median_ms"),
}
"""Columns of ratios: the rival, and which of its times is divided by the operator's."""
_FORMS = {
    "ms": "{:.4f}".format,
    **dict.fromkeys((*RIVALS, SCATTER, EAGER), "{:.2f}x".format),
    **dict.fromkeys(("roofline", "memory"), "{:.0%}".format),
}
_LEGEND = """\
ms: a call of the operator. calls: 2.00x is twice as fast as the pair, F.affine_grid, then F.grid_sample;
graphs: in CUDA graphs; corners: the pair with align_corners; broadcast: with a broadcast grid. roofline:
share of the copy bandwidth. memory: peak, share of the pair's. All are geometric means over the maps."""
_GATHER_LEGEND = """\
ms: a backward of the operator, which gathers. scatter, eager: the time of a fused scatter, and of the pair,
over it; above 1 the operator is faster. Times of CUDA graphs, without the host's, where calls are short."""
_MOST_LINES = 8


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """A row per workload, map and pass: the operator's ``ms``, ``roofline`` and ``memory``, and ``RIVALS``.

    Each rival's time is divided by the operator's, so that above 1 the operator is faster. ``memory`` is the
    operator's peak over the eager pair's. Rows that compare gather and scatter are left out.
    """
    rows = table[timed(table) & ~table["workload"].str.startswith(BACKWARD)]
    rows = rows.drop_duplicates([*CELL, "provider"], keep="last")
    rows = {name: own.set_index(CELL) for name, own in rows.groupby("provider")}
    ours = rows.get(OPERATOR, table[:0].set_index(CELL))

    def column(rival: str, name: str) -> pd.Series:
        theirs = rows[rival][name] if rival in rows else pd.Series(dtype=float)
        return theirs.reindex(ours.index) / ours[name]

    found = {title: column(*rival) for title, rival in RIVALS.items()}
    memory = 1 / column(EAGER, "peak_mib")
    return pd.DataFrame({"ms": ours["median_ms"], **found, "roofline": ours["roofline"], "memory": memory})


def means(table: pd.DataFrame) -> pd.DataFrame:
    """The geometric means of :func:`ratios` over the maps: a row per workload and pass."""
    return ratios(table).groupby(level=["workload", "pass"], sort=False).agg(geometric_mean)


def backwards(table: pd.DataFrame) -> pd.DataFrame:
    """Backwards with both gradients: a row per workload and map, the operator's ``ms``, and ratios to it.

    They are forward and backward less the forward. Times of CUDA graphs, which are free of the host's time,
    are taken if the operator has them; a rival without them is so slow that the host's time does not count.
    """
    rows = table[timed(table) & table["workload"].str.startswith(BACKWARD)]
    rows = rows.drop_duplicates([*CELL, "provider"], keep="last")
    names, forms, passes = (
        (OPERATOR, SCATTER, EAGER),
        ("graph_ms", "median_ms"),
        ("forward", "forward+backward"),
    )
    wide = rows.pivot(index=["workload", "map"], columns=["pass", "provider"], values=[*forms])
    wide = wide.reindex(columns=pd.MultiIndex.from_product([forms, passes, names]))
    graphs, calls = (wide[form][passes[1]] - wide[form][passes[0]] for form in forms)
    found = graphs.fillna(calls)
    is_call = graphs[OPERATOR].isna()
    found.loc[is_call] = calls.loc[is_call]
    found = found.reindex(pd.MultiIndex.from_frame(rows[["workload", "map"]].drop_duplicates()))
    rivals = {name: found[name] / found[OPERATOR] for name in (SCATTER, EAGER)}
    return pd.DataFrame({"ms": found[OPERATOR], **rivals}).dropna(subset=["ms"])


def failures(results: Record) -> list[str]:
    """Everything that makes a run fail, a line each: wrong results, crashes, or nothing compared."""
    lines = [] if results["machine"] else ["no machine was found; evidence.log says why"]
    for name, step in results["steps"].items():
        lines += [f"{name}: {r['what']}: {r['problem']}" for r in step["records"] if not r["ok"]]
        lines += [f"{name}: {crash}" for crash in step["crashes"]]
    asked = _passed(results)
    if asked and not any(_records(results, name) for name in asked):
        lines.append(f"{', '.join(asked)}: nothing was compared")
    return lines


def text(results: Record, table: pd.DataFrame | None, tuning: pd.DataFrame | None = None) -> str:
    """The whole summary as paragraphs, with the rows of speed.csv and tuning.csv, if there are any."""
    machine, problems = results["machine"], failures(results)
    parts = []
    if machine:
        copy = machine.get("copy_gb_per_s", float("nan"))
        parts.append(f"{setting.summary(machine)}\ncopy bandwidth {copy:,.0f} GB/s")
    if results["rehearsal"]:
        parts.append("A REHEARSAL: kernels interpreted on a CPU, tiny workloads; its times mean nothing.")
    passed = ", ".join(f"{name} {count}" for name, count in _passed(results).items())
    verdict = "FAILED" if problems else f"RIGHT; passed: {passed}" if passed else "NOTHING COMPARED"
    parts.append("\n  ".join([verdict, *problems[:_MOST_LINES]]))
    try:
        if table is not None:
            parts += _speeds(table), _shown(backwards(table), _GATHER_LEGEND)
        parts.append("\n".join(_host(results)))
        if tuning is not None:
            parts.append("\n".join(_blocks(results, tuning)))
    except Exception as error:  # rows that nobody thought of must not cost the verdict
        parts.append(f"not shown: {one_line(error)}")
    lines = [f"{results['seconds_used']:.0f} of {results['seconds']:.0f} s used"]
    for name, step in results["steps"].items():
        if step["status"] != DONE:
            lines.append(f"  {name}: {step['status']}; not done: {', '.join(step['left'])}")
    return "\n\n".join(part for part in [*parts, "\n".join(lines)] if part)


def _records(results: Record, name: str) -> list[Record]:
    return results["steps"].get(name, {"records": []})["records"]


def _passed(results: Record) -> dict[str, int]:
    """The number of comparisons that passed, by step."""
    names = [name for name in ("check", "tests") if name in results["steps"]]
    return {name: sum(r.get("passed", r["ok"]) for r in _records(results, name)) for name in names}


def _speeds(table: pd.DataFrame) -> str:
    """The table of ratios against PyTorch, and the rows where the operator is slower."""
    calls = ratios(table)["calls"].dropna()
    slower = calls[calls < 1].sort_values()
    lines = [f"slower than the pair in {len(slower)} of {len(calls)} rows"]
    lines += [f"  {' '.join(where)} {ratio:.2f}x" for where, ratio in slower[:_MOST_LINES].items()]
    return _shown(means(table), _LEGEND, *lines)


def _shown(rows: pd.DataFrame, *lines: str) -> str:
    """A table and lines below it, or nothing if it has no rows."""
    found = rows.reset_index().to_string(index=False, na_rep="-", formatters=_FORMS)
    return "" if rows.empty else "\n".join([found, *lines])


def _host(results: Record) -> Iterator[str]:
    """Lines about the host's time of a call, and first calls."""
    for record in _records(results, "host"):
        if record["ok"]:
            ours, pair = (record["microseconds"][name] for name in ("affine_grid_sample", "eager pair"))
            each = ", ".join(f"{name} {us:.0f} ({pair[name]:.0f})" for name, us in ours.items())
            yield f"host time of a call in microseconds, operator (eager pair): {each}"
    for record in _records(results, "first-calls"):
        seconds = record.get("first_forward_s", 0) + record.get("first_backward_s", 0)
        yield f"{record['what']}: {record.get('problem') or f'{seconds:.1f} s with its backward'}"


def _blocks(results: Record, tuning: pd.DataFrame) -> Iterator[str]:
    """Lines about the gains of other block sizes than the default."""
    times = tuning.set_index("bucket")
    gains = times["median_ms"][times["is_default"]] / times["median_ms"][times["is_best"]]
    for bucket, gain in gains[gains > 1.05].items():
        yield f"{bucket}: {gain:.2f}x by other block sizes"
    yield f"block sizes of {len(gains)} kinds of launches timed; any other gain is below 5 %;"
    name = tables.slug(results["machine"]["device"])
    yield f"to use them in a checkout: cp block-sizes.json stn_triton/tuned/{name}.json"
