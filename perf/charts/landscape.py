"""The landscape of block sizes that ``tune`` measured: a heat map for each of a few buckets."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from perf.charts import style
from perf.files import Run, timed

MOST = 6
"""Buckets of a chart."""
_COLUMNS, _PANEL = 2, 2.75
_SCALE = (1.5, 4.0)  # least and most, in times the best, of the end of the colour scale
_HALFWAY = 0.18  # the luminance at which black and white letters stand out alike, by WCAG's formula
# Bright is fast, so that black and white tell the same; numbers in each cell tell the rest.
_MAP = "cividis_r"
_DEFAULT = {"edgecolor": style.INK, "linewidth": 2.2, "linestyle": (0, (2, 1.2))}
_BEST = {"edgecolor": style.LOSS, "linewidth": 3.0}


def choose(rows: pd.DataFrame, most: int = MOST) -> list[str]:
    """Buckets worth a look: of each kernel the one that gained most over the default, then the next ones."""
    gains = {name: _gain(part) for name, part in rows.groupby("bucket", sort=False)}
    gains = {name: gain for name, gain in gains.items() if gain is not None}
    ranked = sorted(gains, key=lambda name: -gains[name])
    first = {}
    for name in ranked:
        first.setdefault(name.split("/")[0], name)
    chosen = [*first.values(), *(name for name in ranked if name not in first.values())][:most]
    return sorted(chosen, key=ranked.index)


def draw(run: Run) -> Figure:
    """Heat maps of the chosen buckets."""
    chosen = choose(run.rows)
    count = run.rows["bucket"].nunique()
    notes = [
        "Time relative to the bucket's best, by pixels of the tile and channels per program; the best over "
        "warps and runs of channels.",
    ]
    if len(chosen) < count:
        notes.append(
            f"{len(chosen)} of {count} buckets: of each kernel the one that gained most over the default, "
            "then those that gained next."
        )
    lines = [_machine(run), *notes]
    legend = [
        Patch(facecolor="none", label="default", **_DEFAULT),
        Patch(facecolor="none", label="winner", **_BEST),
        Patch(facecolor="white", edgecolor=style.MUTED, hatch="////", label="did not run"),
    ]
    columns = min(_COLUMNS, len(chosen))
    height = -(-len(chosen) // columns)
    made, _ = style.figure("Tuning: the landscape of block sizes", lines, _PANEL * height, legend)
    grid = made.subplots(height, columns, squeeze=False)
    shown = run.rows[timed(run.rows) & run.rows["bucket"].isin(chosen)].groupby("bucket")["median_ms"]
    worst = float((shown.max() / shown.min()).clip(*_SCALE).max())
    scale = ScalarMappable(LogNorm(1, worst), _MAP)
    for ax in grid.flat[len(chosen) :]:
        ax.set_axis_off()
    for ax, name in zip(grid.flat, chosen, strict=False):
        _panel(ax, run.rows[run.rows["bucket"] == name], scale)
    bar = made.colorbar(scale, ax=grid, extend="max", shrink=min(1, 1.6 / height), aspect=25, pad=0.02)
    bar.ax.yaxis.set_major_locator(FixedLocator([t for t in (1, 1.25, 1.5, 2, 3, 4) if t <= worst]))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    bar.set_label("time, relative to the best", fontsize=style.FONT - 1)
    return made


def _machine(run: Run) -> str:
    facts = run.facts
    return (
        f"{facts['device']} · torch {facts['torch']}, triton {facts['triton']} · commit {facts['commit']} · "
        f"{facts['date'][:10]}"
    )


def _gain(rows: pd.DataFrame) -> float | None:
    """The default's time over the best; 1 if the default has none; None if nothing has."""
    rows = rows[timed(rows)]
    if rows.empty:
        return None
    default = rows.loc[rows["is_default"], "median_ms"]
    return float(default.min() / rows["median_ms"].min()) if len(default) else 1.0


def _panel(ax: Axes, rows: pd.DataFrame, scale: ScalarMappable) -> None:
    rows = rows.assign(tile=[f"{h:g}x{w:g}" for h, w in zip(rows["BLOCK_H"], rows["BLOCK_W"], strict=True)])
    rows = rows.assign(area=rows["BLOCK_H"] * rows["BLOCK_W"]).sort_values(["area", "BLOCK_H"])
    tiles, blocks = list(dict.fromkeys(rows["tile"])), sorted(set(rows["BLOCK_C"]))
    good = rows[timed(rows)]
    least = good["median_ms"].min()
    for (tile, block), part in rows.groupby(["tile", "BLOCK_C"]):
        x, y = tiles.index(tile), blocks.index(block)
        times = part.loc[timed(part), "median_ms"]
        if times.empty:
            options = {"facecolor": "white", "edgecolor": style.GRID, "hatch": "////", "linewidth": 0}
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **options))
            text, color = style.shorten(part["status"].iloc[0], 9), style.INK
        else:
            ratio = times.min() / least
            face = scale.to_rgba(ratio)
            ax.add_patch(
                Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=face, edgecolor="white", linewidth=0.8)
            )
            text, color = f"{ratio:.2f}", "black" if luminance(face) > _HALFWAY else "white"
        ax.text(x, y, text, ha="center", va="center", fontsize=style.FONT - 2, color=color)
    for mark, inset, marked in ((_BEST, 0.04, rows["is_best"]), (_DEFAULT, 0.12, rows["is_default"])):
        for row in rows[marked].itertuples():
            x, y = tiles.index(row.tile) - 0.5 + inset, blocks.index(row.BLOCK_C) - 0.5 + inset
            frame = {"width": 1 - 2 * inset, "height": 1 - 2 * inset, "fill": False, "zorder": 3}
            ax.add_patch(Rectangle((x, y), **frame, edgecolor="white", linewidth=4.5))
            ax.add_patch(Rectangle((x, y), **frame, **mark))
    ax.set_xticks(range(len(tiles)), tiles)
    ax.set_yticks(range(len(blocks)), [f"{c:g}" for c in blocks])
    ax.set_xlim(-0.5, len(tiles) - 0.5)
    ax.set_ylim(-0.5, len(blocks) - 0.5)
    ax.tick_params(length=0, labelsize=style.FONT - 1)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("tile, pixels", fontsize=style.FONT - 1)
    ax.set_ylabel("channels per program", fontsize=style.FONT - 1)
    ax.set_title(_title(rows, good), fontsize=style.FONT - 1.5, loc="left")


def _title(rows: pd.DataFrame, good: pd.DataFrame) -> str:
    best = good.loc[good["median_ms"].idxmin()]
    gain = _gain(rows)
    had = f"default {gain:.2f}x of it" if good["is_default"].any() else "the default has no time"
    winner = f"best {style.duration(best['median_ms'])} ({best['num_warps']:g} warps), {had}"
    return f"{style.shorten(rows['bucket'].iloc[0], 80)}\n{winner}"


def luminance(color: tuple[float, ...]) -> float:
    """How bright a colour is, 0 to 1, as WCAG defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
