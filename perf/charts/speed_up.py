"""Bar charts with a line per workload: speed-up, fraction of the roofline, peak memory.

The bar is the operator's geometric mean over the maps. Markers are the other providers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator

from perf.charts import style
from perf.files import EAGER, OPERATOR, SWEEP, Run, geometric_mean, value_of

MAIN = ("forward", "forward+backward")
MOST = 60
"""Largest number of workloads in a chart; a foreign file may have any number."""
_WIN = {"facecolor": style.WIN, "edgecolor": "white", "linewidth": 0}
_LOSS = _WIN | {"facecolor": style.LOSS, "hatch": "//"}


class Measure(NamedTuple):
    """A ratio that is drawn as bars. Its ``loss`` is -1 if less than 1 is a loss, 1 if more is, else 0."""

    title: str
    values: Callable[[pd.DataFrame], pd.Series]
    loss: int
    is_speed: bool = False

    def text(self, value: float) -> str:
        """Write a speed with two decimals, a share in percent."""
        digits = ".2g" if value < 0.1 else ".0f"
        return f"{value:.2f}x" if self.is_speed else f"{100 * value:{digits}} %"


MEASURES = {
    "speed": Measure(
        "speed-up over F.affine_grid + F.grid_sample",
        lambda rows: value_of(rows, EAGER, "median_ms") / rows["median_ms"],
        loss=-1,
        is_speed=True,
    ),
    "roofline": Measure(
        "roofline, bytes of the model per second as a share of the copy bandwidth",
        lambda rows: rows["roofline"],
        loss=0,
    ),
    "memory": Measure(
        "peak memory of a call, as a share of the eager pair's",
        lambda rows: rows["peak_mib"] / value_of(rows, EAGER, "peak_mib"),
        loss=1,
    ),
}


def draw(run: Run, measure: Measure = MEASURES["speed"], passes: Sequence[str] = MAIN) -> Figure | None:
    """Draw a panel per pass; None if no row of these passes has a value."""
    rows = run.rows[run.rows["pass"].isin(passes) & ~run.rows["workload"].str.fullmatch(SWEEP)]
    rows = rows.assign(value=measure.values(rows))
    without = rows[rows["value"].isna()]
    if len(without) == len(rows):
        return None
    note = "Bars: the operator's geometric mean over the maps. Whiskers: its least to its largest value"
    note += ", with the 20 to 80 % interval of the times." if measure.is_speed else "."
    if not measure.loss:
        note += f" Copy bandwidth: {rows['copy_gb_per_s'].median():.4g} GB/s."
    if len(without):
        note += f" Rows without a value: {style.counts(without)}."
    workloads = list(rows["workload"].unique())
    if len(workloads) > MOST:
        note += f" The first {MOST} of {len(workloads)} workloads."
        workloads = workloads[:MOST]
    rows = rows[rows["workload"].isin(workloads)]
    if measure.is_speed:
        graphs = rows.assign(
            provider=style.GRAPHS, value=value_of(rows, EAGER, "graph_ms") / rows["graph_ms"]
        )
        rows = pd.concat([rows, graphs[(rows["provider"] == OPERATOR) & graphs["value"].notna()]])
    # The eager pair is the line at 1, except in the chart of the roofline.
    rivals = rows.loc[rows["value"].notna() & (rows["provider"] != OPERATOR), "provider"].unique()
    marks = {
        name: style.line(name) | {"linestyle": ""} for name in rivals if name != EAGER or not measure.loss
    }
    bars = [Patch(**_WIN, label="operator")]
    bars += [Patch(**_LOSS, label="operator, worse than the eager pair")] if measure.loss else []
    legend = [*bars, *(Line2D([], [], **mark) for mark in marks.values())]
    made = style.figure(run, f"Affine sampling: {measure.title}", note, 1 + 0.46 * len(workloads), legend)
    panels = [name for name in passes if name in set(rows["pass"])]
    grid = made.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for ax, name in zip(grid, panels, strict=True):
        ax.set_title({"theta": "theta alone", "input": "input alone"}.get(name, name), pad=16)
        _panel(ax, rows[rows["pass"] == name], measure, marks, workloads)
    labels = [_label(rows[rows["workload"] == name].iloc[0]) for name in workloads]
    grid[0].set_yticks(range(len(workloads)), labels)
    grid[0].set_ylim(len(workloads) - 0.4, -0.6)
    if measure.is_speed:
        grid[0].set_xscale("log")
        low, high = grid[0].get_xlim()
        digits = (1, 2, 5) if high > 20 * low else (1, 1.5, 2, 3, 5, 7)
        grid[0].xaxis.set_major_locator(LogLocator(subs=digits))
        grid[0].minorticks_off()
    else:
        grid[0].set_xlim(left=0)
        grid[0].xaxis.set_major_locator(MaxNLocator(5))
    grid[0].xaxis.set_major_formatter("{x:g}x" if measure.is_speed else "{x:.0%}")
    return made


def _panel(ax: Axes, rows: pd.DataFrame, measure: Measure, marks: dict, workloads: Sequence[str]) -> None:
    base = 1.0 if measure.is_speed else 0.0
    for (workload, name), own in rows.groupby(["workload", "provider"], sort=False):
        y, mean = workloads.index(workload), geometric_mean(own["value"])
        if name in marks:
            ax.plot([mean], [y + 0.3], **marks[name], clip_on=False)
        if name != OPERATOR:
            continue
        is_loss, texts = measure.loss * (mean - 1) > 0, []
        if mean > 0:
            ax.barh(y - 0.1, mean - base, 0.44, base, **(_LOSS if is_loss else _WIN))
            noise = [own["median_ms"] / own[q].fillna(own["median_ms"]) for q in ("q80_ms", "q20_ms")]
            slow, fast = noise if measure.is_speed else (1, 1)
            ends = (own["value"] * slow).min(), (own["value"] * fast).max()
            ax.plot(ends, [y - 0.1] * 2, color="black", marker="|", linewidth=1.2)
            time = f"  {geometric_mean(own['median_ms']):.3g} ms" * measure.is_speed
            texts = [measure.text(mean) + time]
        problems = own.loc[own["value"].isna(), "status"].value_counts().head(2)
        texts += [f"{style.shorten(status, 16)}: {n} of {len(own)}" for status, n in problems.items()]
        color = style.LOSS if is_loss or len(problems) else style.INK
        ax.text(1.02, y, "\n".join(texts), transform=ax.get_yaxis_transform(), va="center", color=color)
    ax.axvline(1, color="black", linewidth=1.2)
    above = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "bottom", "color": style.MUTED}
    ax.text(1, 1.002, "eager pair" if measure.loss else "100 %", **above)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)


def _label(row: pd.Series) -> str:
    shape = f"{row['shape']} → {row['size']} {row['dtype']} {row['layout'].replace('NCHW', '')}"
    return f"{style.shorten(row['workload'], 34)}\n{style.shorten(shape.strip(), 44)}"
