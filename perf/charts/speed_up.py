"""Charts with a line per workload: speed-up, fraction of the roofline, peak memory.

Per workload and pass the operator has a bar, the geometric mean over the maps, with a whisker for the noise
and a tick per map below it; the other providers are markers under it. Numbers stand to the right. What has no
value stands there as text.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from perf.charts import style
from perf.charts.measures import SPEED, Cell, Measure, cell_of, percent, values_of
from perf.files import EAGER, OK, OPERATOR, Run, sweep_of

_BAR, _MAPS, _OTHERS = -0.2, 0.09, 0.3  # where in a workload's line of height 1
_TEXTS = (-0.27, -0.04, 0.18, 0.38)  # the same for the numbers on the right and what has none
# Inches: a workload's line, above and below all of them; the names, the numbers of a panel, between panels.
_LINE, _ABOVE, _BELOW = 0.58, 0.55, 0.55
_NAMES, _NUMBERS, _GAP = 2.65, 1.75, 0.15
_SMALL_SHARE = 0.25
"""If no share is more, as on CPUs, a linear axis with 100 % on it would show nothing."""
_MOST = 60
"""Workloads of a chart; a foreign file may have any number."""
_TICK = 0.42
"""Inches between two ticks at least: their labels stand side by side."""
_TITLES = {"theta": "gradient of theta alone", "input": "gradient of input alone"}
_LETTERS = 27
"""That fit beside a panel in small type."""


def draw(run: Run, measure: Measure, passes: Sequence[str]) -> Figure:
    """The chart of a measure, a panel per pass."""
    rows = run.rows[[sweep_of(name) is None for name in run.rows["workload"]]]
    rows = rows[rows["pass"].isin(passes)]
    passes = [name for name in passes if name in set(rows["pass"])]
    names = list(dict.fromkeys(rows["workload"]))
    workloads = names[:_MOST]
    rows = rows[rows["workload"].isin(workloads)]
    providers = style.in_order(rows["provider"])
    if measure.eager_is_one:
        providers = [name for name in providers if name != EAGER]
    absent = _absent(rows, providers)
    mean = ["Geometric mean over the maps, whose values stand below it."] if rows["map"].nunique() > 1 else []
    cut = [f"The first {_MOST} of {len(names)} workloads."] if len(names) > _MOST else []
    lines = style.head(run, [" ".join([measure.note(rows), *mean, *cut]), *absent.values()])
    shown = [name for name in providers if name not in absent]
    rows = rows.assign(value=values_of(rows, measure))
    cells = {
        key: cell_of(part, measure)
        for key, part in rows.groupby(["workload", "pass", "provider"], sort=False)
        if key[2] in shown
    }
    height = _LINE * len(workloads)
    body = _ABOVE + height + _BELOW
    made, foot = style.figure(measure.title, lines, body, _legend(measure, shown, cells))
    axes = _panels(made, len(passes), foot + _BELOW, height)
    start, xlabel = _scale(axes[0], measure, cells)
    for ax, pass_name in zip(axes, passes, strict=True):
        title = _TITLES.get(pass_name, pass_name.replace("+", " + "))
        ax.set_title(title, fontsize=style.FONT + 1, loc="left", pad=16)
        ax.set_xlabel(xlabel, fontsize=style.FONT - 1)
        for y, workload in enumerate(workloads):
            own = {name: cells.get((workload, pass_name, name)) for name in shown}
            _line(ax, y, {name: cell for name, cell in own.items() if cell}, measure, start)
            ax.axhline(y - 0.5, color=style.GRID, linewidth=0.5, zorder=0)
        _decorate(ax, measure)
    labels = [_workload_label(rows[rows["workload"] == name].iloc[0]) for name in workloads]
    axes[0].set_yticks(range(len(workloads)), labels, fontsize=style.FONT - 1)
    axes[0].set_ylim(len(workloads) - 0.45, -0.55)
    return made


def _panels(made: Figure, count: int, bottom: float, height: float) -> list[Axes]:
    """Axes side by side, each with room for its numbers; ``bottom`` and ``height`` in inches."""
    made.set_layout_engine("none")
    width = (style.WIDTH - _NAMES) / count - _NUMBERS - _GAP
    axes: list[Axes] = []
    for i in range(count):
        left = _NAMES + i * (width + _NUMBERS + _GAP)
        box = left / style.WIDTH, bottom / made.get_figheight(), width / style.WIDTH
        first = axes[0] if axes else None
        axes.append(made.add_axes((*box, height / made.get_figheight()), sharex=first, sharey=first))
        axes[i].tick_params(labelleft=i == 0)
    return axes


def has_rows(run: Run, measure: Measure, passes: Sequence[str]) -> bool:
    """Whether any row has a value of the measure, or for a speed the operator a reason for none."""
    rows = run.rows[[sweep_of(name) is None for name in run.rows["workload"]]]
    rows = rows[rows["pass"].isin(passes)]
    failed = (rows["provider"] == OPERATOR) & (rows["status"] != OK) & (measure is SPEED)
    return bool((values_of(rows, measure).notna() | failed).any())


def _absent(rows: pd.DataFrame, providers: Sequence[str]) -> dict[str, str]:
    """Rivals that have no time at all, each with a line that says why; said once and not on each workload."""
    lines = {}
    for name in providers:
        own = rows[rows["provider"] == name]
        if name != OPERATOR and (own["status"] != OK).all() and own["status"].nunique() == 1:
            why = f" ({own['reason'].iloc[0]})" if own["reason"].nunique() == 1 else ""
            text = f"{style.label(name)}: {style.shorten(own['status'].iloc[0], 30)} on every row"
            lines[name] = style.shorten(f"{text}{why}", 145)
    return lines


def _line(ax: Axes, y: float, cells: dict[str, Cell], measure: Measure, start: float) -> None:
    """One workload in one panel; the bar begins at ``start``."""
    own = cells.get(OPERATOR)
    if own and own.by_map:
        _operator(ax, y, own, measure, start)
    beside = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
    if own and own.by_map:
        options = beside | {"xytext": (8, 0), "fontweight": "bold", "annotation_clip": False}
        ax.annotate(measure.text(own.mean), (1, y + _TEXTS[0]), **options)
        options = beside | {"xytext": (62, 0), "annotation_clip": False} | _SMALL
        ax.annotate(measure.detail_text(own.amount), (1, y + _TEXTS[0]), **options)
    for place, (text, color) in zip(_TEXTS[1:], _remarks(cells, measure), strict=False):
        options = beside | {"xytext": (8, 0), "annotation_clip": False} | _SMALL | {"color": color}
        ax.annotate(text, (1, y + place), **options)
    for name, cell in cells.items():
        if name == OPERATOR or not cell.by_map:
            continue
        lost = measure.is_loss(cell.mean)
        color = style.LOSS if lost else style.INK
        face = style.LOSS if lost else "none"
        options = {"markersize": 6.5, "markeredgewidth": 1.2, "linestyle": "", "clip_on": False}
        options |= {"markeredgecolor": color, "markerfacecolor": face}
        ax.plot([cell.mean], [y + _OTHERS], marker=style.look(name).marker, **options)


def _remarks(cells: dict[str, Cell], measure: Measure) -> list[tuple[str, str]]:
    """Up to three short lines with their colours: the range over the maps, then what has no value and why."""
    own = cells.get(OPERATOR)
    lines = []
    if own and own.by_map:
        least, most = measure.text(min(own.by_map)), measure.text(max(own.by_map))
        lines += [(f"{least} to {most}", style.MUTED)] if least != most else []
    sharing: dict[str, list[str]] = {}
    for name, cell in cells.items():
        for problem in cell.problems:
            sharing.setdefault(problem, []).append(style.label(name))
    problems = [
        f"{problem}: {'all' if len(names) == len(cells) > 1 else ', '.join(names)}"
        for problem, names in sharing.items()
    ]
    wrapped = [part for p in problems for part in textwrap.wrap(p, _LETTERS, subsequent_indent="  ")]
    room = 3 - len(lines)
    if len(wrapped) > room:
        wrapped = [style.shorten(p, _LETTERS) for p in problems]
    if len(wrapped) > room:
        wrapped = [*wrapped[: room - 1], f"and {len(wrapped) - room + 1} more: see the table"]
    return lines + [(text, style.LOSS) for text in wrapped]


_SMALL = {"fontsize": style.FONT - 2, "color": style.MUTED}


def _operator(ax: Axes, y: float, cell: Cell, measure: Measure, start: float) -> None:
    lost = measure.is_loss(cell.mean)
    color = style.LOSS if lost else style.WIN
    options = {"color": color, "hatch": style.HATCH if lost else None, "edgecolor": "white"}
    ax.barh(y + _BAR, cell.mean - start, left=start, height=0.38, linewidth=0, **options)
    low, high = cell.noise
    if low < high:
        for color, more in (("white", 1.8), ("black", 0)):  # black on white shows on any bar
            widths = {"linewidth": 1.3 + more, "markeredgewidth": 1.3 + more, "markersize": 7 + more}
            ax.plot([low, high], [y + _BAR] * 2, color=color, marker="|", clip_on=False, **widths)
    if max(cell.by_map) > 1.005 * min(cell.by_map):
        ends = [min(cell.by_map), max(cell.by_map)]
        ax.plot(ends, [y + _MAPS] * 2, color=style.MUTED, linewidth=0.8)
        options = {"marker": "|", "markersize": 5, "linestyle": "", "color": style.MUTED}
        ax.plot(cell.by_map, [y + _MAPS] * len(cell.by_map), **options)


def _decorate(ax: Axes, measure: Measure) -> None:
    ax.axvline(1, color="black", linewidth=1.2, zorder=3)
    above = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "bottom"}
    ax.text(1, 1.002, measure.mark_text, **above, **_SMALL)
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=style.FONT - 1)


def _scale(ax: Axes, measure: Measure, cells: dict[tuple[str, str, str], Cell]) -> tuple[float, str]:
    """Fit the axis to the values and 1; return where bars start, and the axis' label."""
    shown = [v for cell in cells.values() for v in (cell.mean, *cell.noise)]
    shown += [v for key, cell in cells.items() if key[2] == OPERATOR for v in cell.by_map]
    shown = [v for v in shown if np.isfinite(v)] or [1.0]
    low, high = min([*shown, 1]), max([*shown, 1])
    inches = ax.get_position().width * style.WIDTH
    if measure.base == 0:
        is_linear = max(shown) > _SMALL_SHARE
        ax.set_xscale("linear" if is_linear else "log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
        if is_linear:
            ax.set_xlim(0, 1.06 * high)
            ax.xaxis.set_major_locator(FixedLocator(linear_ticks(1.06 * high, inches)))
            return 0, measure.xlabel
    else:
        low, high = (low / 1.25, high * 1.25) if high / low < 2 else (low, high)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    ax.xaxis.set_minor_locator(NullLocator())
    pad = (high / low) ** 0.04
    low, high = low / pad, high * pad
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(FixedLocator(log_ticks(low, high, inches)))
    return measure.base or low, f"{measure.xlabel} (log scale)"


def linear_ticks(high: float, inches: float) -> list[float]:
    """Round values from 0 to ``high``, as close as their labels allow, 1 among them; ``high`` is over 1."""
    least = _TICK * high / inches
    step = next((step for step in (0.1, 0.2, 0.25, 0.5, 1) if step >= least), 0)
    if not step:  # then 1 is too close to 0 for both to have a label
        step = next(m * 10**e for e in itertools.count() for m in (1, 2, 5) if m * 10**e >= least)
    ticks = [i * step for i in range(int(high / step) + 1)]
    return ticks if step <= 1 else [1, *(tick for tick in ticks if tick >= 1 + least)]


def log_ticks(low: float, high: float, inches: float) -> list[float]:
    """Round values from ``low`` to ``high``, as close as their labels allow; 1 is between and among them."""
    least = _TICK * math.log10(high / low) / inches
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3)):
        ticks = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high]
        if all(math.log10(b / a) >= least for a, b in itertools.pairwise(ticks)):
            return ticks
    stride = max(1, math.ceil(least))
    return [10.0**e for e in decades if e % stride == 0 and low <= 10.0**e <= high]


def _legend(measure: Measure, shown: Sequence[str], cells: dict[tuple[str, str, str], Cell]) -> list[Artist]:
    handles: list[Artist] = []
    own = [cell for key, cell in cells.items() if key[2] == OPERATOR and cell.by_map]
    name = style.label(OPERATOR)
    if own:
        handles.append(Patch(facecolor=style.WIN, label=name))
    if own and measure.loss:
        loss = {"facecolor": style.LOSS, "edgecolor": "white", "hatch": style.HATCH, "linewidth": 0}
        handles.append(Patch(**loss, label=f"{name}, {measure.loss}"))
    if any(cell.noise[0] < cell.noise[1] for cell in own):
        whisker = {"color": "black", "marker": "|", "markersize": 6, "linewidth": 1.3}
        handles.append(Line2D([], [], **whisker, label="20 to 80 % of the runs"))
    if any(max(cell.by_map) > 1.005 * min(cell.by_map) for cell in own):
        ticks = {"color": style.MUTED, "marker": "|", "markersize": 5, "linewidth": 0.8}
        handles.append(Line2D([], [], **ticks, label="each map"))
    options = {"linestyle": "", "markersize": 6.5}
    for other in shown:
        if other != OPERATOR:
            colors = {"markeredgecolor": style.INK, "markerfacecolor": "none"}
            marker = style.look(other).marker
            handles.append(Line2D([], [], **options, **colors, marker=marker, label=style.label(other)))
    if measure.loss and any(other != OPERATOR for other in shown):
        text = f"filled: {measure.loss}"
        handles.append(Line2D([], [], **options, marker="s", color=style.LOSS, label=text))
    return handles


def _workload_label(row: pd.Series) -> str:
    size = f" → {row['size']}" if row["size"] and not row["shape"].endswith(f"x{row['size']}") else ""
    layout = f" {row['layout']}" if row["layout"] not in ("", "NCHW") else ""
    text = f"{row['shape']}{size} {row['dtype']}{layout}"
    return f"{style.shorten(row['workload'], 34)}\n{style.shorten(text, 44)}"
