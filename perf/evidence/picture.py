"""The picture of the evidence: how fast beside the eager pair, and gather against scatter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from perf import setting
from perf.evidence.outcome import SCATTER, backwards, means
from perf.files import EAGER, runs

_FASTER, _SLOWER, _INK = "#1f4e8c", "#b3401d", "#111111"
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_MARK = {"linestyle": "", "markeredgecolor": _INK, "markerfacecolor": "white", "markersize": 7}


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the last run of a table of `bench` rows as a PNG."""
    run = runs(table)[-1]
    pair, gather = means(run.rows), backwards(run.rows)
    height = 1.9 + 0.3 * max(len(pair), len(gather))
    figure = Figure(figsize=(13, height), layout="constrained")
    title = "The operator against PyTorch, and its gather against a scatter"
    title += ": A REHEARSAL, not measured on a GPU" if run.quick else ""
    figure.suptitle(f"{title}\n{setting.summary(run.facts)}", fontsize=11)
    left, right = figure.subplots(1, 2)
    colors = [_SLOWER if value < 1 else _FASTER for value in pair["calls"]]
    left.barh(range(len(pair)), pair["calls"] - 1, left=1, height=0.7, color=colors, label="calls")
    left.plot(
        pair["graphs"], range(len(pair)), **_MARK, marker="d", label="CUDA graphs, without the host's time"
    )
    for place, value in enumerate(pair["calls"]):
        left.annotate(
            f"{value:.2f}x", (1.01, place), xycoords=left.get_yaxis_transform(), va="center", fontsize=8
        )
    title = "times as fast as F.affine_grid, then F.grid_sample (the pair)"
    _finish(left, title, pair, [*pair["calls"], *pair["graphs"]])
    for name, marker, label in ((SCATTER, "*", "fused scatter"), (EAGER, "s", "the pair")):
        right.plot(gather[name], range(len(gather)), **_MARK, marker=marker, label=label)
    title = "backward: time over the operator's, which gathers"
    _finish(right, title, gather, [*gather[SCATTER], *gather[EAGER]])
    figure.savefig(path, dpi=120)


def _finish(ax: Axes, title: str, rows: pd.DataFrame, values: Sequence[float]) -> None:
    """Title, labels of the rows, a logarithmic axis around 1, and the legend."""
    known = [value for value in values if value > 0]  # not NaN
    low, high = min([*known, 0.8]) / 1.15, max([*known, 1.25]) * 1.15
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_yticks(range(len(rows)), [" ".join(name) for name in rows.index], fontsize=8)
    ax.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(low, high)
    ax.axvline(1, color=_INK, linewidth=1.2)
    ax.grid(axis="x", alpha=0.4)
    ax.set_axisbelow(True)
    ax.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.35 / max(len(rows), 1) - 0.04), ncols=2, frameon=False
    )
