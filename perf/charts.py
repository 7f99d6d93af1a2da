"""The speed chart."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from perf import environment
from perf.passes import PASSES
from perf.providers import EAGER, PROVIDERS
from perf.results import OK

# Dark against light and plain against hatched, so that it reads in black and white too.
_WIN = {"operator": "#1f4e8c", "compile": "#a9c6e8"}
_LOSS = {"operator": "#b3401d", "compile": "#f3bfa6"}
_HATCH = "//"
_HATCH_COLOR = {"operator": "white", "compile": "#7a2a10"}
_FONT = 11


def speed_chart(table: pd.DataFrame, facts: dict[str, str | int], path: Path) -> None:
    """Draw the speed-up over the eager pair per workload and pass, and save it as PNG."""
    workloads = list(dict.fromkeys(table["workload"]))
    eager_ms = table["speedup"] * table["median_ms"]
    table = table.assign(slow=eager_ms / table["q80_ms"], fast=eager_ms / table["q20_ms"])
    shown = table[table["provider"] != EAGER]
    providers = [name for name in PROVIDERS if name in set(shown["provider"])]
    subtitle = [environment.summary(facts), *notes(table, facts)]

    head, foot = 0.55 + 0.22 * len(subtitle), 0.45
    height = head + foot + 1.0 + 0.34 * len(workloads) * (len(providers) + 0.6)
    figure = Figure(figsize=(11.5, height))
    figure.set_layout_engine("constrained", rect=(0, foot / height, 1, 1 - (head + foot) / height))
    axes = figure.subplots(1, len(PASSES), sharex=True, sharey=True)
    for ax, pass_name in zip(axes, PASSES, strict=True):
        _panel(ax, shown[shown["pass"] == pass_name], workloads, providers)
        ax.set_title(pass_name.replace("+", " + "), fontsize=_FONT + 1)
        ax.set_xlabel("speed-up over the eager pair (log scale)", fontsize=_FONT)
    _scale(axes[0], [*shown["slow"].dropna(), *shown["fast"].dropna()])
    axes[0].set_yticks(range(len(workloads)), [_label(table, name) for name in workloads], fontsize=_FONT)
    axes[0].set_ylim(len(workloads) - 0.45, -0.55)

    title = "Affine sampling: speed-up over F.affine_grid + F.grid_sample"
    figure.text(0.01, 1 - 0.12 / height, title, fontsize=_FONT + 4, fontweight="bold", va="top")
    figure.text(0.01, 1 - 0.48 / height, "\n".join(subtitle), fontsize=_FONT - 1, va="top", color="#333333")
    handles = _legend(providers)
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=_FONT)
    with mpl.rc_context({"hatch.linewidth": 1.2}):
        figure.savefig(path, dpi=150)


def notes(table: pd.DataFrame, facts: dict[str, str | int]) -> list[str]:
    """What the reader of a chart must know beside hardware and versions."""
    lines = ["Only right results have a time: the median, in brackets; whiskers: 20-80 % of the runs."]
    if facts["device_type"] == "cpu":
        lines.append("On a CPU the operator runs its plain PyTorch path, not its GPU kernels.")
    if table["quick"].any():
        lines.append("Quick run: small batches, few repetitions.")
    return lines


def _panel(ax: Axes, rows: pd.DataFrame, workloads: list[str], providers: list[str]) -> None:
    thickness = 0.8 / max(len(providers), 1)
    middle = (len(providers) - 1) / 2
    for row in rows.itertuples():
        y = workloads.index(row.workload) + (providers.index(row.provider) - middle) * thickness
        if row.status != OK or pd.isna(row.speedup):
            text = row.status if row.status != OK else "no eager time"
            ax.text(1, y, f" {PROVIDERS[row.provider].label}: {text}", va="center", fontsize=_FONT - 1)
            continue
        lost = row.speedup < 1
        ax.barh(
            y,
            row.speedup - 1,
            left=1,
            height=thickness * 0.9,
            color=(_LOSS if lost else _WIN)[row.provider],
            hatch=_HATCH if lost else None,
            edgecolor=_HATCH_COLOR[row.provider],
            linewidth=0,
        )
        ax.plot([row.slow, row.fast], [y, y], color="black", linewidth=1.2, marker="|", markersize=5)
        text = f" {row.speedup:.2f}x  ({row.median_ms:.3g} ms)"
        ax.text(max(1, row.fast), y, text, va="center", fontsize=_FONT - 1)
    ax.axvline(1, color="black", linewidth=1)
    ax.grid(axis="x", color="#dddddd", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _scale(ax: Axes, shown: list[float]) -> None:
    low, high = min([0.8, *shown]), max([1.25, *shown])
    # On a log scale the labels right of the bars take the same share of the width whatever the range.
    span = high / low
    ax.set_xscale("log", base=2)
    ax.set_xlim(low / span**0.05, high * span**0.5)
    ax.xaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.5) if span < 5 else (1,)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    ax.tick_params(labelsize=_FONT - 1)


def _label(table: pd.DataFrame, workload: str) -> str:
    row = table[table["workload"] == workload].iloc[0]
    return f"{workload}\n{row['shape']} {row['dtype']}"


def _legend(providers: list[str]) -> list[Patch]:
    handles = []
    for name in providers:
        label = PROVIDERS[name].label
        handles.append(Patch(color=_WIN[name], label=f"{label}, faster"))
        loss = {"facecolor": _LOSS[name], "edgecolor": _HATCH_COLOR[name], "hatch": _HATCH, "linewidth": 0}
        handles.append(Patch(**loss, label=f"{label}, slower than eager"))
    return handles
