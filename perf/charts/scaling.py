"""Time over size, batch and channels, on logarithmic axes, beside the time that the byte model allows."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from perf.charts import style
from perf.files import BELIEVABLE, OK, OPERATOR, Run, sweep_of, timed

AXES = {
    "size": "height and width of the images",
    "batch": "images",
    "channels": "channels",
}
_PANEL = 2.9  # inches
_IDEAL = {"color": "black", "linewidth": 1.4, "linestyle": (0, (1, 1.6))}


def rows_of(run: Run) -> pd.DataFrame:
    """The rows of the sweeps, with ``axis`` and ``n``: what a workload varies, and its value."""
    found = [sweep_of(name) for name in run.rows["workload"]]
    rows = run.rows[[sweep is not None for sweep in found]]
    found = [sweep for sweep in found if sweep is not None]
    return rows.assign(axis=[axis for axis, _ in found], n=[n for _, n in found])


def draw(run: Run, passes: Sequence[str]) -> Figure:
    """A panel per pass and kind of sweep."""
    rows = rows_of(run)
    passes = [name for name in passes if name in set(rows["pass"])]
    axes_names = [name for name in AXES if name in set(rows["axis"])]
    providers = style.in_order(rows["provider"])
    absent = [name for name in providers if (rows.loc[rows["provider"] == name, "status"] != OK).all()]
    drawn = [name for name in providers if name not in absent]
    notes = ["Median, band: 20 to 80 % of the runs."]
    if len(_ideal(rows)):
        notes[0] += " Dotted: the byte model at the measured copy bandwidth."
    for name in absent:
        first = rows[rows["provider"] == name].iloc[0]
        why = f" ({first['reason']})" if first["reason"] else ""
        notes.append(style.shorten(f"{style.label(name)}: {first['status']}{why}", 145))
    made, _ = style.figure(
        "Affine sampling: time over size, batch and channels",
        style.head(run, notes),
        _PANEL * len(passes) + 0.3,
        _legend(drawn, rows),
        most=7,
    )
    grid = made.subplots(len(passes), len(axes_names), sharex="col", sharey="row", squeeze=False)
    for line, pass_name in zip(grid, passes, strict=True):
        for ax, name in zip(line, axes_names, strict=True):
            part = rows[(rows["pass"] == pass_name) & (rows["axis"] == name)].sort_values("n")
            _panel(ax, part, drawn)
            if ax in grid[0]:
                ax.set_title(f"{name}: {_shape(rows[rows['axis'] == name])}", fontsize=style.FONT, loc="left")
            if ax in grid[-1]:
                ax.set_xlabel(f"{AXES[name]} (log scale)", fontsize=style.FONT - 1)
        line[0].set_ylabel(f"{pass_name.replace('+', ' + ')}\ntime of a call (log scale)")
    return made


def _panel(ax: Axes, rows: pd.DataFrame, providers: Sequence[str]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    values = sorted(set(rows["n"]))
    ax.set_xticks(values)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(numticks=9))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.duration(value)))
    ax.grid()
    ax.tick_params(labelsize=style.FONT - 1)
    is_timed = timed(rows)
    for name in reversed(providers):  # the operator on top
        own = rows[(rows["provider"] == name) & is_timed]
        look = style.look(name)
        if own.empty:
            continue
        low, high = (
            own[q].where(own[q].between(*BELIEVABLE), own["median_ms"]) for q in ("q20_ms", "q80_ms")
        )
        ax.fill_between(own["n"], low, high, color=look.color, alpha=0.2, linewidth=0)
        size = (
            {"linewidth": 2.2, "markersize": 6} if name == OPERATOR else {"linewidth": 1.3, "markersize": 5}
        )
        options = size | {"markerfacecolor": look.color if name == OPERATOR else "white"}
        ax.plot(own["n"], own["median_ms"], color=look.color, marker=look.marker, ls=look.line, **options)
    ideal = _ideal(rows)
    ax.plot(ideal.index, ideal, **_IDEAL)
    _failures(ax, rows[~is_timed & rows["provider"].isin(providers)])


def _ideal(rows: pd.DataFrame) -> pd.Series:
    """Milliseconds that the model's bytes take at the copy bandwidth, by n."""
    ideal = rows["model_mib"] * 2**20 / rows["copy_gb_per_s"] / 1e6
    ideal = ideal.where(ideal.between(*BELIEVABLE))
    return ideal.groupby(rows["n"]).median().dropna()


def _failures(ax: Axes, rows: pd.DataFrame) -> None:
    """What has no time stands as text above its place on the axis."""
    for n, part in rows.groupby("n"):
        texts = [
            f"{style.label(name)}: {style.shorten(status, 20) if status != OK else 'no time'}"
            for name, status in zip(part["provider"], part["status"], strict=True)
        ]
        if len(texts) > 2:
            texts = [texts[0], f"and {len(texts) - 1} more"]
        place = {"xycoords": ax.get_xaxis_transform(), "rotation": 90, "ha": "center", "va": "bottom"}
        options = {"fontsize": style.FONT - 2, "color": style.LOSS, "xytext": (0, 3)}
        ax.annotate("\n".join(texts), (n, 0), textcoords="offset points", **place, **options)


def _shape(rows: pd.DataFrame) -> str:
    """The shape with N for what varies, ``64x3xNxN``, and the dtype."""
    shapes = [shape.split("x") for shape in rows["shape"]]
    if len({len(shape) for shape in shapes}) != 1:
        return "several shapes"
    sizes = zip(*shapes, strict=True)
    names = (
        "N" if [str(n) for n in rows["n"]] == list(size) else size[0] if len(set(size)) == 1 else "…"
        for size in sizes
    )
    return style.shorten(f"{'x'.join(names)} {' '.join(dict.fromkeys(rows['dtype']))}", 36)


def _legend(providers: Sequence[str], rows: pd.DataFrame) -> list[Artist]:
    handles: list[Artist] = []
    for name in providers:
        look = style.look(name)
        options = {"color": look.color, "marker": look.marker, "linestyle": look.line}
        options |= {"markerfacecolor": look.color if name == OPERATOR else "white"}
        width = 2.2 if name == OPERATOR else 1.3
        handles.append(Line2D([], [], linewidth=width, label=style.label(name), **options))
    if len(_ideal(rows)):
        handles.append(Line2D([], [], label="byte model", **_IDEAL))
    return handles
