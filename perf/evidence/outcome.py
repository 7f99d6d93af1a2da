"""The summary: right or wrong, how fast, and which steps were cut or broke."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pandas as pd

from perf import files, setting
from perf.charts import speed_up, style
from perf.evidence.runner import DONE, left
from perf.evidence.steps import Record
from perf.files import CELL, EAGER, FAILED, OPERATOR, Run, geometric_mean, timed, value_of
from perf.measuring.providers import SCATTER
from perf.measuring.suite import one_line
from perf.measuring.workloads import WORKLOADS
from stn_triton import tables

_COMPARING = ("check", "tests", "large-tests")  # the steps that say whether results are right
_RIVALS = {
    "calls": (EAGER, "median_ms"),
    "graphs": (EAGER, "graph_ms"),
    "corners": ("eager-corners", "median_ms"),
}
"""Columns of ratios: the rival, and which of its times is divided by the operator's."""
_LEGEND = """\
ms: a call of the operator. calls: 2.00x is twice as fast as the pair, F.affine_grid, then F.grid_sample;
graphs: in CUDA graphs; corners: the pair with align_corners. All are geometric means over the maps."""
_GATHER_LEGEND = """\
ms: a backward of the operator, which gathers. scatter, eager: the time of a fused scatter, and of the pair,
over it; above 1 the operator is faster. Times of CUDA graphs, without the host's, where calls are short."""
_PASSES = ["forward", "forward+backward"]
_WORKLOADS = [name for name, workload in WORKLOADS.items() if not workload.sweep]
_MOST_LINES = 8


def summarize(results: Record, out: Path) -> str:
    """Return the whole summary, and draw evidence.png."""
    parts = [verdict(results)]
    for part in (speeds, texts):
        try:
            parts += part(results, out)
        except Exception as error:  # rows that nobody thought of must not cost the other parts
            parts.append(f"not shown: {one_line(error)}")
    return "\n\n".join([*parts, cut(results)])


def failures(results: Record) -> list[str]:
    """The first problem of each command that has one, such as a crash; or that nothing was compared."""
    lines = [] if results["machine"] else ["no machine was found: its step failed, or was ended"]
    for step, commands in results["steps"].items():
        for name, command in commands.items():
            problems = command.get("problems", [])
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            lines += [f"{step}: {name}: {problem}{more}" for problem in problems[:1]]
    if set(_COMPARING) & set(results["steps"]) and not _passed(results):
        lines.append("nothing was compared")
    return lines


def verdict(results: Record) -> str:
    """The machine, and whether its results are right."""
    machine, problems, passed = results["machine"], failures(results), _passed(results)
    lines = [setting.summary(machine)] if machine else []
    if machine.get("device_type") == "cpu":
        lines.append("A REHEARSAL: the plain PyTorch path on a CPU. No test runs, and times mean nothing.")
    right = f"RIGHT; passed: {', '.join(passed)}" if passed else "NOTHING COMPARED"
    return "\n".join([*lines, "", "FAILED" if problems else right, *_few(problems, "evidence.json")])


def speeds(results: Record, out: Path) -> Iterator[str]:
    """Yield paragraphs of times from speed.csv; draw evidence.png."""
    if (out / "speed.csv").exists():
        run = files.read_run(out / "speed.csv")
        calls = ratios(run.rows)["calls"].dropna()
        if len(calls):
            slower = calls[calls < 1].sort_values()
            lines = [f"{' '.join(where)} {ratio:.2f}x" for where, ratio in slower.items()]
            yield f"{markdown(run)}\n{_LEGEND}"
            yield "\n".join(
                [f"slower than the pair in {len(slower)} of {len(calls)} rows", *_few(lines, "speed.csv")]
            )
        gather = backwards(run.rows)
        if len(gather):
            yield f"{gather.to_string(float_format='%.3g', na_rep='-')}\n{_GATHER_LEGEND}"
        draw(run, out / "evidence.png")


def texts(results: Record, out: Path) -> Iterator[str]:
    """Yield what commands print."""
    for step, commands in results["steps"].items():
        yield from (f"{step}, {name}:\n{one['text']}" for name, one in commands.items() if one.get("text"))
    if (out / "block-sizes.json").exists():
        name = tables.slug(results["machine"]["device"])
        tuned = f"mkdir -p stn_triton/tuned && cp {out}/block-sizes.json stn_triton/tuned/{name}.json"
        yield f"to use the block sizes in a checkout: {tuned}"


def cut(results: Record) -> str:
    """The time that was used, and the commands that were cut."""
    lines = [f"{results['seconds_used']:.0f} of {results['seconds']:.0f} s used"]
    names = {step: "; ".join(left(commands)) for step, commands in results["steps"].items() if left(commands)}
    return "\n".join([*lines, *(f"  {step}: not done: {commands}" for step, commands in names.items())])


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per workload, map and pass: the operator's ``ms``, and each rival's time divided by it.

    Workloads of a sweep are left out.
    """
    rows = rows[timed(rows) & rows["workload"].isin(_WORKLOADS)]
    rivals = {name: value_of(rows, *rival) / rows[rival[1]] for name, rival in _RIVALS.items()}
    rows = rows.assign(ms=rows["median_ms"], **rivals)
    return rows[rows["provider"] == OPERATOR].set_index(CELL)[["ms", *_RIVALS]]


def markdown(run: Run) -> str:
    """The README's table: a row per workload, its passes side by side; then the machine that measured it."""
    means = ratios(run.rows).groupby(level=["workload", "pass"], sort=False).agg(geometric_mean)
    means = means.reindex(pd.MultiIndex.from_product([means.index.unique("workload"), _PASSES]))
    heads = [head for name in _PASSES for head in (f"{name}, ms", *_RIVALS)]
    lines = ["| workload | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    forms = ["{:.2f}", *["{:.2f}x"] * len(_RIVALS)] * len(_PASSES)
    for workload, passes in means.groupby(level=0, sort=False):
        first = run.rows[run.rows["workload"] == workload].iloc[0]
        size = "" if first["shape"].endswith(first["size"]) else f" to {first['size']}"
        layout = "" if first["layout"] == "NCHW" else f", {first['layout']}"
        values = zip(forms, passes.to_numpy().flat, strict=True)
        cells = " | ".join(form.format(value) if pd.notna(value) else "-" for form, value in values)
        lines.append(f"| {workload}: {first['shape']}{size}, {first['dtype']}{layout} | {cells} |")
    copy = run.rows["copy_gb_per_s"].median()
    return "\n".join([*lines, "", f"{setting.summary(run.facts)}; copy bandwidth {copy:,.0f} GB/s."])


def draw(run: Run, path: Path) -> None:
    """Draw how much faster than the eager pair the operator is, as a PNG."""
    rows = run.rows[run.rows["workload"].isin(_WORKLOADS) & (run.rows["provider"] != SCATTER)]
    with mpl.rc_context(style.RC):
        figure = speed_up.draw(replace(run, rows=rows))
    if figure:
        path.write_bytes(style.render(figure, "png"))


def backwards(rows: pd.DataFrame) -> pd.DataFrame:
    """Backwards with both gradients: a row per workload and map, the operator's ``ms``, and ratios to it.

    They are forward and backward less the forward. Times of CUDA graphs, which are free of the host's time,
    are taken where a provider has them; one without them is so slow that the host's time does not count.
    """
    key, times = ["workload", "map", "provider"], ["graph_ms", "median_ms"]
    wide = rows[timed(rows)].pivot(index=key, columns="pass", values=times)
    wide = wide.reindex(columns=pd.MultiIndex.from_product([times, _PASSES]))
    graphs, calls = (wide[time][_PASSES[1]] - wide[time][_PASSES[0]] for time in times)
    found = graphs.fillna(calls).unstack().reindex(columns=[OPERATOR, SCATTER, EAGER])
    ratio = found[[SCATTER, EAGER]].div(found[OPERATOR], axis=0)
    return pd.concat([found[OPERATOR].rename("ms"), ratio], axis=1).dropna(subset=["ms", SCATTER])


def _passed(results: Record) -> list[str]:
    """The number of commands that succeeded, of each step that compares results and has some."""
    found = []
    for step in _COMPARING:
        statuses = [command["status"] for command in results["steps"].get(step, {}).values()]
        if DONE in statuses or FAILED in statuses:
            found.append(f"{step} {statuses.count(DONE)} of {len(statuses)}")
    return found


def _few(lines: list[str], file: str) -> list[str]:
    """The first lines, indented, and how many more a file has."""
    more = len(lines) - _MOST_LINES
    few = [*lines[:_MOST_LINES], *[f"and {more} more, in {file}"] * (more > 0)]
    return [f"  {line}" for line in few]
