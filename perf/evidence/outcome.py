"""The summary: right or wrong, how fast, and which steps were cut or broke."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pandas as pd

from perf import files, setting
from perf.charts import speed_up, style
from perf.evidence.runner import DONE
from perf.evidence.stage import Record
from perf.files import EAGER, OPERATOR, Run, geometric_mean, timed, value_of
from perf.measuring.results import CELL
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


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per workload, map and pass: the operator's ``ms``, ``roofline`` and ``memory``, and ``RIVALS``.

    Each rival's time is divided by the operator's, so that above 1 the operator is faster. ``memory`` is the
    operator's peak over the eager pair's. Rows that compare gather and scatter are left out.
    """
    rows = rows[timed(rows) & ~rows["workload"].str.startswith(BACKWARD)]
    rivals = {name: value_of(rows, *rival) / rows[rival[1]] for name, rival in RIVALS.items()}
    memory = rows["peak_mib"] / value_of(rows, EAGER, "peak_mib")
    rows = rows.assign(ms=rows["median_ms"], **rivals, memory=memory)
    return rows[rows["provider"] == OPERATOR].set_index(CELL)[["ms", *RIVALS, "roofline", "memory"]]


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """The geometric means of :func:`ratios` over the maps: a row per workload and pass."""
    return ratios(rows).groupby(level=["workload", "pass"], sort=False).agg(geometric_mean)


def backwards(rows: pd.DataFrame) -> pd.DataFrame:
    """Backwards with both gradients: a row per workload and map, the operator's ``ms``, and ratios to it.

    They are forward and backward less the forward. Times of CUDA graphs, which are free of the host's time,
    are taken if the operator has them; a rival without them is so slow that the host's time does not count.
    """
    rows = rows[timed(rows) & rows["workload"].str.startswith(BACKWARD)]
    order = pd.MultiIndex.from_frame(rows[["workload", "map"]].drop_duplicates())
    wide = rows.pivot(index=order.names, columns=["pass", "provider"], values=["graph_ms", "median_ms"])
    names, passes = [OPERATOR, SCATTER, EAGER], ["forward", "forward+backward"]
    columns = pd.MultiIndex.from_product([["graph_ms", "median_ms"], passes, names])
    wide = wide.reindex(order, columns=columns)
    graphs, calls = (wide[time][passes[1]] - wide[time][passes[0]] for time in ("graph_ms", "median_ms"))
    found = graphs.fillna(calls).where(graphs[OPERATOR].notna(), calls)
    ratio = found[[SCATTER, EAGER]].div(found[OPERATOR], axis=0)
    return ratio.assign(ms=found[OPERATOR]).dropna(subset=["ms"])[["ms", SCATTER, EAGER]]


def draw(run: Run, path: Path) -> None:
    """Draw how much faster than the eager pair the operator is, as a PNG."""
    rows = run.rows[~run.rows["workload"].str.startswith(BACKWARD)]
    with mpl.rc_context(style.RC):
        figure = speed_up.draw(replace(run, rows=rows))
    if figure:
        path.write_bytes(style.render(figure, "png"))


def failures(results: Record) -> list[str]:
    """Everything that makes a run fail, a line each: wrong results, crashes, or nothing compared."""
    lines = [] if results["machine"] else ["no machine was found; evidence.log says why"]
    for name, step in results["steps"].items():
        lines += [f"{name}: {r['what']}: {r['problem']}" for r in step["records"] if not r["ok"]]
        lines += [f"{name}: {crash}" for crash in step["crashes"]]
    compared = [name for name in ("check", "tests") if name in results["steps"]]
    if compared and not any(results["steps"][name]["records"] for name in compared):
        lines.append(f"{', '.join(compared)}: nothing was compared")
    return lines


def verdict(results: Record) -> str:
    """The machine, and whether its results are right."""
    machine, problems = results["machine"], failures(results)
    copy = f"copy bandwidth {machine.get('copy_gb_per_s', float('nan')):,.0f} GB/s"
    lines = [setting.summary(machine), copy] if machine else []
    if results["rehearsal"]:
        lines.append("A REHEARSAL: kernels interpreted on a CPU, tiny workloads; its times mean nothing.")
    passed = [
        f"{name} {sum(record.get('passed', record['ok']) for record in results['steps'][name]['records'])}"
        for name in ("check", "tests")
        if name in results["steps"]
    ]
    right = f"RIGHT; passed: {', '.join(passed)}" if passed else "NOTHING COMPARED"
    return "\n".join([*lines, "", "FAILED" if problems else right, *_few(problems)])


def figures(results: Record, out: Path) -> Iterator[str]:
    """Yield paragraphs of times from speed.csv, the steps' records and tuning.csv; draw evidence.png."""
    if (out / "speed.csv").exists():
        run = files.runs(files.read_speed(out / "speed.csv"))[-1]
        calls = ratios(run.rows)["calls"].dropna()
        slower = calls[calls < 1].sort_values()
        lines = [f"{' '.join(where)} {ratio:.2f}x" for where, ratio in slower.items()]
        count = f"slower than the pair in {len(slower)} of {len(calls)} rows"
        yield _shown(means(run.rows), _LEGEND, count, *_few(lines))
        yield _shown(backwards(run.rows), _GATHER_LEGEND)
    yield "\n".join(_host(results))
    if (out / "tuning.csv").exists():
        yield "\n".join(_blocks(results, pd.read_csv(out / "tuning.csv")))
    if (out / "speed.csv").exists():
        draw(run, out / "evidence.png")


def cut(results: Record) -> str:
    """The time that was used, and the steps that were cut."""
    lines = [f"{results['seconds_used']:.0f} of {results['seconds']:.0f} s used"]
    for name, step in results["steps"].items():
        if step["status"] != DONE:
            lines.append(f"  {name}: {step['status']}; not done: {', '.join(step['left'])}")
    return "\n".join(lines)


def _few(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines[:_MOST_LINES]]


def _shown(rows: pd.DataFrame, *lines: str) -> str:
    """A table and lines below it, or nothing if it has no rows."""
    found = rows.reset_index().to_string(index=False, na_rep="-", formatters=_FORMS)
    return "" if rows.empty else "\n".join([found, *lines])


def _host(results: Record) -> Iterator[str]:
    """Lines about the host's time of a call, and first calls."""
    records = {name: step["records"] for name, step in results["steps"].items()}
    for record in records.get("host", []):
        if record["ok"]:
            ours, pair = (record["microseconds"][name] for name in ("affine_grid_sample", "eager pair"))
            each = ", ".join(f"{name} {us:.0f} ({pair[name]:.0f})" for name, us in ours.items())
            yield f"host time of a call in microseconds, operator (eager pair): {each}"
    for record in records.get("first-calls", []):
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
