"""Time over size, batch and channels, on logarithmic axes, beside the time that the byte model allows."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from perf.charts import style
from perf.charts.speed_up import MAIN
from perf.files import SWEEP, Run, timed

TITLE = "time of the workloads size-N, batch-N and channels-N"
_AXES = {"size": "height and width of the images", "batch": "images", "channels": "channels"}
_MODEL = {"color": "black", "linestyle": ":", "label": "byte model"}
_NOTE = "Medians. Dotted: the byte model at the measured copy bandwidth."


def draw(run: Run) -> Figure | None:
    """Draw a panel per pass and kind of sweep; None if no row of a sweep has a time."""
    names = run.rows["workload"].str.extract(f"^{SWEEP}$")
    rows = run.rows.assign(axis=names[0], n=names[1].astype(float)).sort_values("n", kind="stable")
    rows = rows[rows["axis"].notna() & rows["pass"].isin(MAIN)]
    note, rows = f"{_NOTE} {style.without(rows[~timed(rows)])}", rows[timed(rows)]
    if rows.empty:
        return None
    panels = [name for name in MAIN if name in set(rows["pass"])]
    axes = [name for name in _AXES if name in set(rows["axis"])]
    looks = [style.line(name) for name in rows["provider"].unique()]
    legend = [Line2D([], [], **look) for look in [*looks, _MODEL]]
    made = style.figure(run, f"Affine sampling: {TITLE}", note, 2.9 * len(panels), legend)
    grid = made.subplots(len(panels), len(axes), sharex="col", sharey="row", squeeze=False)
    for line, name in zip(grid, panels, strict=True):
        line[0].set_ylabel(f"{name}\ntime of a call")
        for ax, axis in zip(line, axes, strict=True):
            own = rows[rows["axis"] == axis]
            _panel(ax, own[own["pass"] == name])
            shape = own["shape"].iloc[-1].replace(f"{own['n'].iloc[-1]:.0f}", "N")
            ax.set_title(style.shorten(f"{axis}: {shape} {own['dtype'].iloc[-1]}", 45))
            ax.set_xlabel(_AXES[axis])
            ax.label_outer()
    return made


def _panel(ax: Axes, rows: pd.DataFrame) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    for name, own in rows.groupby("provider", sort=False):
        ax.plot(own["n"], own["median_ms"], **style.line(name))
    model = (rows["model_mib"] * 2**20 / rows["copy_gb_per_s"] / 1e6).groupby(rows["n"]).median()
    ax.plot(model.index, model, **_MODEL)
    ax.set_xticks(sorted(set(rows["n"])))
    ax.minorticks_off()
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.yaxis.set_major_formatter("{x:g} ms")
    ax.grid()
