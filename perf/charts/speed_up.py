"""Bar charts with a line per workload: how many times less time, or memory, than the eager pair.

The bar is the operator's geometric mean over the maps. Markers are the other providers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from perf.charts import style
from perf.files import EAGER, OK, OPERATOR, SWEEP, Run, geometric_mean, value_of

MAIN = ("forward", "forward+backward")
_WIN, _LOSS = {"facecolor": style.WIN}, {"facecolor": style.LOSS, "hatch": "//", "edgecolor": "white"}
_NOTE = "Bars: the operator's geometric mean over the maps, with its least and its largest value."


class Measure(NamedTuple):
    """A column of result files whose ratio to the eager pair's is drawn."""

    title: str
    column: str
    unit: str


MEASURES = {
    "speed": Measure("speed-up over F.affine_grid + F.grid_sample", "median_ms", "ms"),
    "memory": Measure("peak memory of the eager pair over that of the operator", "peak_mib", "MiB"),
}


def draw(run: Run, measure: Measure = MEASURES["speed"], passes: Sequence[str] = MAIN) -> Figure | None:
    """Draw a panel per pass; None if no row of these passes has a value."""
    rows = run.rows[run.rows["pass"].isin(passes) & ~run.rows["workload"].str.fullmatch(SWEEP)]
    rows = rows.assign(value=value_of(rows, EAGER, measure.column) / rows[measure.column])
    if rows["value"].isna().all():
        return None
    note = f"{_NOTE} {style.without(rows[rows['value'].isna()])}"
    workloads = rows.drop_duplicates("workload")
    rows["y"] = pd.Index(workloads["workload"]).get_indexer(rows["workload"])
    if measure.unit == "ms":
        in_graphs = rows.assign(value=value_of(rows, EAGER, "graph_ms") / rows["graph_ms"])
        in_graphs = in_graphs[(rows["provider"] == OPERATOR) & in_graphs["value"].notna()]
        rows = pd.concat([rows, in_graphs.assign(provider=style.GRAPHS)])
    rivals = [name for name in rows["provider"].unique() if name not in (OPERATOR, EAGER)]
    marks = {name: style.line(name) | {"linestyle": ""} for name in rivals}
    bars = [Patch(**_WIN, label="operator"), Patch(**_LOSS, label="operator, worse than the eager pair")]
    legend = [*bars, *(Line2D([], [], **mark) for mark in marks.values())]
    made = style.figure(run, f"Affine sampling: {measure.title}", note, 1 + 0.46 * len(workloads), legend)
    panels = [name for name in passes if name in set(rows["pass"])]
    grid = made.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for ax, name in zip(grid, panels, strict=True):
        ax.set_title(name, pad=16)
        _panel(ax, rows[rows["pass"] == name], measure, marks)
    grid[0].set_yticks(range(len(workloads)), workloads.apply(_label, axis=1))
    grid[0].set_ylim(len(workloads) - 0.4, -0.6)
    grid[0].set_xscale("log")
    low, high = grid[0].get_xlim()
    grid[0].set_xlim(min(low, 0.49), max(high, 2.05))  # with three ticks at least
    grid[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    grid[0].xaxis.set_major_formatter("{x:g}x")
    grid[0].minorticks_off()
    return made


def _panel(ax: Axes, rows: pd.DataFrame, measure: Measure, marks: dict[str, dict]) -> None:
    for name, mark in marks.items():
        means = rows[rows["provider"] == name].groupby("y")["value"].agg(geometric_mean)
        ax.plot(means, means.index + 0.3, **mark)
    for y, own in rows[rows["provider"] == OPERATOR].groupby("y"):
        mean, amount = geometric_mean(own["value"]), geometric_mean(own[measure.column])
        texts = [f"{mean:.2f}x  {amount:.3g} {measure.unit}"] * bool(mean > 0)
        if mean > 0:
            ax.barh(y - 0.1, mean - 1, 0.44, 1, **(_LOSS if mean < 1 else _WIN))
            ends = own["value"].min(), own["value"].max()
            ax.plot(ends, [y - 0.1] * 2, color="black", marker="|", linewidth=1.2)
        problems = own.loc[own["value"].isna(), "status"].replace(OK, "no pair").value_counts()
        texts += [f"{style.shorten(status, 16)}: {n} of {len(own)}" for status, n in problems.items()]
        color = style.LOSS if mean < 1 or len(problems) else style.INK
        ax.text(1.02, y, "\n".join(texts), transform=ax.get_yaxis_transform(), va="center", color=color)
    ax.axvline(1, color="black", linewidth=1.2)
    above = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "bottom", "color": style.MUTED}
    ax.text(1, 1.002, "eager pair", **above)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)


def _label(row: pd.Series) -> str:
    shape = f"{row['shape']} → {row['size']} {row['dtype']} {row['layout'].replace('NCHW', '')}"
    return f"{style.shorten(row['workload'], 34)}\n{style.shorten(shape.strip(), 44)}"
