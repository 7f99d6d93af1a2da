"""The chart of the evidence: speed-up over the eager pair, and gather against scatter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator

from perf.charts import style
from perf.charts.speed_up import log_ticks
from perf.evidence.outcome import SCATTER, backwards, ratios
from perf.files import EAGER, OPERATOR, geometric_mean, runs

_LINE = 0.3
"""Inches of a bar."""
_GRAPH = {"marker": "d", "markersize": 8, "color": "white", "markeredgecolor": style.INK, "linestyle": ""}
_LABELS = {SCATTER: "right: fused scatter", EAGER: "right: eager pair"}


def draw(table: pd.DataFrame, path: Path) -> bool:
    """Draw the chart of the last run in the table as a PNG; returns whether there was anything to draw."""
    run = runs(table)[-1]
    found, gathers = ratios(run.rows), backwards(run.rows)
    if found.empty and gathers.empty:
        return False
    bars = [
        (f"{workload} {name}", *(geometric_mean(group[column]) for column in (EAGER, f"{EAGER}_graph")))
        for (workload, name), group in found.groupby(["workload", "pass"], sort=False)
    ]
    title = "The operator against PyTorch, and its gather against a scatter"
    title += ": A REHEARSAL, not measured on a GPU" if run.quick else ""
    lines = max(len(bars), len(gathers))
    notes = [
        "The eager pair: F.affine_grid, then F.grid_sample. Left: geometric means over the maps. "
        "Right: the operator gathers the gradient of images and scatters that of volumes; without the host's "
        "time where calls are short."
    ]
    with mpl.rc_context(style.RC):
        figure, _ = style.figure(title, style.head(run, notes), 1.0 + _LINE * lines, _legend(), 3)
        parts = [(_bars, bars)] * bool(bars) + [(_dots, gathers)] * bool(len(gathers))
        for ax, (draw_part, values) in zip(
            figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True
        ):
            draw_part(ax, values)
        path.write_bytes(style.render(figure, "png"))
    return True


def _legend() -> list[Artist]:
    losing = {"facecolor": style.LOSS, "edgecolor": "white", "hatch": style.HATCH, "linewidth": 0}
    dots = {"linestyle": "", "markersize": 7, "color": style.INK, "markerfacecolor": "none"}
    return [
        Patch(facecolor=style.WIN, label="left: a call, faster than the eager pair"),
        Patch(**losing, label="left: a call, slower"),
        Line2D([], [], **_GRAPH, label="left: in CUDA graphs, without the host's time"),
        *(Line2D([], [], **dots, marker=style.look(name).marker, label=_LABELS[name]) for name in _LABELS),
        Line2D(
            [],
            [],
            **dots | {"markerfacecolor": style.LOSS},
            marker="*",
            label="right, filled: faster than the operator",
        ),
    ]


def _bars(ax: Axes, bars: Sequence[tuple[str, float, float]]) -> None:
    """Left: a bar for each workload and pass, as calls are; a mark where they are replayed in graphs."""
    for y, (_, value, in_graphs) in enumerate(bars):
        look = {"color": style.LOSS, "hatch": style.HATCH} if value < 1 else {"color": style.WIN}
        ax.barh(y, value - 1, left=1, height=0.7, edgecolor="white", linewidth=0, **look)
        ax.plot([in_graphs], [y], **_GRAPH)
        place = {"xycoords": ax.get_yaxis_transform(), "xytext": (4, 0), "textcoords": "offset points"}
        ax.annotate(f"{value:.2f}x", (1, y), va="center", fontsize=style.FONT - 2, **place)
    values = [value for bar in bars for value in bar[1:]]
    _finish(ax, "times as fast as the eager pair", [bar[0] for bar in bars], values)
    ax.set_xlabel("logarithmic; the numbers are the bars'")


def _dots(ax: Axes, gathers: pd.DataFrame) -> None:
    """Right: both rivals' times over the gather's."""
    values = {name: gathers[name] / gathers[OPERATOR] for name in _LABELS}
    for name, own in values.items():
        for y, value in enumerate(own):
            face = style.LOSS if value < 1 else "none"
            options = {"markeredgecolor": style.INK, "markerfacecolor": face, "linestyle": ""}
            ax.plot([value], [y], marker=style.look(name).marker, markersize=7, **options)
    labels = (gathers["workload"] + ", " + gathers["map"]).tolist()
    _finish(
        ax, "backward alone: time over the operator's", labels, [v for own in values.values() for v in own]
    )
    ax.set_xlabel("logarithmic; left of 1x the operator loses")


def _finish(ax: Axes, title: str, labels: Sequence[str], values: Sequence[float]) -> None:
    ax.set_title(title, fontsize=style.FONT, loc="left")
    ax.set_yticks(range(len(labels)), [style.shorten(label, 60) for label in labels], fontsize=style.FONT - 2)
    ax.set_ylim(max(len(labels), 1) - 0.4, -0.6)
    ax.axvline(1, color="black", linewidth=1.2)
    ax.grid(axis="x")
    known = [value for value in values if pd.notna(value) and value > 0] or [1.0]
    low, high = min([*known, 0.8]) / 1.15, max([*known, 1.25]) * 1.15
    ax.set_xscale("log", base=2)
    ax.set_xlim(low, high)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    ax.set_xticks(log_ticks(low, high, 3.5))
